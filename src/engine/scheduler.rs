use std::collections::{BTreeMap, VecDeque};

use super::blocks::BlockPool;

/// Names a sequence in the scheduler; later ones are greater.
pub type SequenceId = u64;

/// The bounds of a pass and of the cache.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sequences that run at the same time.
    pub max_running: usize,
    /// Tokens in one forward pass.
    pub max_batched_tokens: usize,
    /// Blocks in the key/value cache.
    pub cache_blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
}

/// Decides which tokens of which sequences the next pass computes. It counts tokens and blocks and
/// holds no tensors.
///
/// A sequence is computed as far as its tokens go; then a new one is sampled. So a prefill and a
/// decode differ only in how many tokens are left, and a preempted sequence is one with none
/// computed.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Progress>,
    /// First come first served; preempted sequences go to the front.
    waiting: VecDeque<SequenceId>,
    /// In the order in which they started.
    running: Vec<SequenceId>,
}

#[derive(Debug, Default)]
struct Progress {
    tokens: usize,
    computed: usize,
    blocks: Vec<u32>,
    paused: bool,
}

/// Tokens of one sequence for the next pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub id: SequenceId,
    pub start: usize,
    pub len: usize,
    /// Whether these are its last tokens, so that the next one is sampled.
    pub samples: bool,
    pub blocks: Vec<u32>,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        let pool = BlockPool::new(limits.cache_blocks, limits.block_tokens);
        Self { limits, pool, sequences: BTreeMap::new(), waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Adds a sequence of `tokens` tokens at the end of the queue.
    pub fn add(&mut self, id: SequenceId, tokens: usize) {
        self.sequences.insert(id, Progress { tokens, ..Progress::default() });
        self.waiting.push_back(id);
    }

    /// Forgets a sequence and frees its blocks.
    pub fn remove(&mut self, id: SequenceId) {
        if let Some(mut progress) = self.sequences.remove(&id) {
            self.pool.release(&mut progress.blocks);
            self.waiting.retain(|waiting| *waiting != id);
            self.running.retain(|running| *running != id);
        }
    }

    /// A paused sequence is not computed; it gives its blocks up if others wait for them.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.paused = paused;
        }
    }

    /// Notes that a chunk has been computed, and whether a token was sampled after it.
    pub fn computed(&mut self, chunk: &Chunk, sampled: bool) {
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            progress.computed = chunk.start + chunk.len;
            progress.tokens += usize::from(sampled);
        }
    }

    /// Blocks in use.
    pub fn used_blocks(&self) -> usize {
        self.pool.used()
    }

    /// The next pass; empty if there is nothing to compute.
    pub fn schedule(&mut self) -> Vec<Chunk> {
        let mut budget = self.limits.max_batched_tokens;
        let mut chunks = Vec::new();
        // Streams that are being read go first; what is left of the pass goes to prompts.
        for decodes in [true, false] {
            for id in self.running.clone() {
                if self.is_decode(id) == Some(decodes) && budget > 0 {
                    self.take(id, &mut budget, &mut chunks);
                }
            }
        }
        while budget > 0 && self.admit() {
            if let Some(id) = self.running.last().copied() {
                self.take(id, &mut budget, &mut chunks);
            }
        }
        // A sequence that was scheduled may have been preempted for an older one since.
        chunks.retain(|chunk| self.running.contains(&chunk.id));
        chunks
    }

    /// Whether a running sequence lacks one token only; `None` if it is not to be computed.
    fn is_decode(&self, id: SequenceId) -> Option<bool> {
        let progress = self.sequences.get(&id).filter(|progress| !progress.paused)?;
        self.running.contains(&id).then_some(progress.tokens - progress.computed == 1)
    }

    /// Schedules what the budget allows of a sequence, preempting younger ones if blocks run out.
    fn take(&mut self, id: SequenceId, budget: &mut usize, chunks: &mut Vec<Chunk>) {
        loop {
            let Some(progress) = self.sequences.get_mut(&id) else { return };
            let (start, left) = (progress.computed, progress.tokens - progress.computed);
            let len = left.min(*budget);
            if self.pool.grow(&mut progress.blocks, start + len) {
                *budget -= len;
                chunks.push(Chunk { id, start, len, samples: len == left, blocks: progress.blocks.clone() });
                return;
            }
            match self.running.last().copied() {
                Some(youngest) if youngest != id => {
                    if let Some(given_back) = chunks.iter().position(|chunk| chunk.id == youngest) {
                        *budget += chunks.remove(given_back).len;
                    }
                    self.preempt(youngest);
                }
                _ => return self.preempt(id),
            }
        }
    }

    fn preempt(&mut self, id: SequenceId) {
        self.running.retain(|running| *running != id);
        if let Some(progress) = self.sequences.get_mut(&id) {
            self.pool.release(&mut progress.blocks);
            progress.computed = 0;
            self.waiting.push_front(id);
        }
    }

    /// Moves the first waiting sequence to the running ones if the cache can hold all its tokens. Paused
    /// ones make room for it: a reader that does not read holds up nobody.
    fn admit(&mut self) -> bool {
        let next = self.waiting.iter().find(|id| self.sequences.get(id).is_some_and(|p| !p.paused)).copied();
        let Some(id) = next else { return false };
        let tokens = self.sequences.get(&id).map_or(0, |progress| progress.tokens);
        while self.running.len() >= self.limits.max_running || self.pool.needed(tokens) > self.pool.free() {
            let paused = |id: &&SequenceId| self.sequences.get(id).is_some_and(|progress| progress.paused);
            match self.running.iter().rev().find(paused).copied() {
                Some(paused) => self.preempt(paused),
                None => return false,
            }
        }
        self.waiting.retain(|waiting| *waiting != id);
        self.running.push(id);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(max_running: usize, max_batched_tokens: usize, cache_blocks: usize) -> Scheduler {
        Scheduler::new(Limits { max_running, max_batched_tokens, cache_blocks, block_tokens: 4 })
    }

    fn step(scheduler: &mut Scheduler) -> Vec<(SequenceId, usize, usize, bool)> {
        let chunks = scheduler.schedule();
        for chunk in &chunks {
            scheduler.computed(chunk, chunk.samples);
        }
        chunks.into_iter().map(|c| (c.id, c.start, c.len, c.samples)).collect()
    }

    #[test]
    fn a_long_prompt_shares_passes_with_decodes() {
        let mut s = scheduler(8, 8, 100);
        s.add(0, 3);
        assert_eq!(step(&mut s), [(0, 0, 3, true)]);
        s.add(1, 20);
        assert_eq!(step(&mut s), [(0, 3, 1, true), (1, 0, 7, false)]);
        assert_eq!(step(&mut s), [(0, 4, 1, true), (1, 7, 7, false)]);
        assert_eq!(step(&mut s), [(0, 5, 1, true), (1, 14, 6, true)]);
        assert_eq!(step(&mut s), [(0, 6, 1, true), (1, 20, 1, true)]);
    }

    #[test]
    fn the_youngest_gives_way_when_blocks_run_out_and_comes_back() {
        let mut s = scheduler(8, 100, 3);
        s.add(0, 4);
        s.add(1, 4);
        assert_eq!(step(&mut s), [(0, 0, 4, true), (1, 0, 4, true)]);
        // Both need a second block; there is one.
        assert_eq!(step(&mut s), [(0, 4, 1, true)]);
        assert_eq!(s.used_blocks(), 2);
        s.remove(0);
        assert_eq!(step(&mut s), [(1, 0, 5, true)]);
        s.remove(1);
        assert_eq!(s.used_blocks(), 0);
    }

    #[test]
    fn a_paused_sequence_costs_nothing_and_goes_on_where_it_was() {
        let mut s = scheduler(1, 100, 100);
        s.add(0, 2);
        assert_eq!(step(&mut s), [(0, 0, 2, true)]);
        s.set_paused(0, true);
        assert_eq!(step(&mut s), []);
        s.set_paused(0, false);
        assert_eq!(step(&mut s), [(0, 2, 1, true)]);
    }

    #[test]
    fn a_paused_sequence_makes_room_for_others_and_comes_back() {
        let mut s = scheduler(1, 100, 100);
        s.add(0, 2);
        s.add(1, 2);
        assert_eq!(step(&mut s), [(0, 0, 2, true)]);
        s.set_paused(0, true);
        assert_eq!(step(&mut s), [(1, 0, 2, true)]);
        s.set_paused(0, false);
        assert_eq!(step(&mut s), [(1, 2, 1, true)]);
        s.remove(1);
        assert_eq!(step(&mut s), [(0, 0, 3, true)]);
    }
}
