//! The sequences of a batch, and their places in the KV cache.

use super::heads::BLOCK_TOKENS;

/// The rows of one sequence in a batch, and the cache blocks of the sequence.
#[derive(Debug, Clone, Copy)]
pub struct PagedSequence<'a> {
    /// Rows in the batch: the last tokens of the sequence.
    pub rows: usize,
    /// Tokens of the sequence, these rows included.
    pub context_len: usize,
    /// The cache blocks that hold the keys and values of all tokens, in order.
    pub blocks: &'a [u32],
}

impl<'a> PagedSequence<'a> {
    /// The blocks that attention of its rows reads.
    pub fn read(&self) -> &'a [u32] {
        &self.blocks[..self.context_len.div_ceil(BLOCK_TOKENS)]
    }

    /// The blocks that the keys and values of its rows are stored in.
    pub fn written(&self) -> &'a [u32] {
        assert!(self.rows <= self.context_len);
        &self.read()[(self.context_len - self.rows) / BLOCK_TOKENS..]
    }

    /// The places of its rows' keys and values.
    pub fn slots(&self) -> impl Iterator<Item = TokenSlot> {
        let slot = |position| TokenSlot {
            block: self.blocks[position / BLOCK_TOKENS] as usize,
            token: position % BLOCK_TOKENS,
        };
        (self.context_len - self.rows..self.context_len).map(slot)
    }
}

/// The place of a token in the cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenSlot {
    pub block: usize,
    /// Index in the block.
    pub token: usize,
}
