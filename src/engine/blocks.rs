/// Hands out the blocks of the key/value cache. Which memory they are is the decoder's business.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    total: usize,
    block_tokens: usize,
}

impl BlockPool {
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        // The lowest block is taken first, so that memory is touched only as it is needed.
        Self { free: (0..blocks as u32).rev().collect(), total: blocks, block_tokens }
    }

    /// Blocks that `tokens` tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Makes `held` big enough for `tokens` tokens; all or nothing.
    pub fn grow(&mut self, held: &mut Vec<u32>, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(held.len());
        if missing > self.free.len() {
            return false;
        }
        held.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes blocks back.
    pub fn release(&mut self, held: &mut Vec<u32>) {
        self.free.extend(held.drain(..).rev());
    }
}
