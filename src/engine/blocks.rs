//! The block manager: who holds which blocks of the paged cache and which slots of recurrent states, and the prefix
//! cache.

mod state_pool;
mod states;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use state_pool::{ContentId, SequenceState, StatePool};

use crate::adapters::AdapterId;
use crate::decoder::{SpanStates, StateSave};

/// Allocates blocks of the paged KV cache by reference count. Blocks are numbers here; the decoder knows their memory.
///
/// A full block can be published under its tokens and all tokens before them, so that other sequences with that prefix
/// share it (automatic prefix cache). Published blocks without holders stay, up to a limit, until their place is
/// needed: the least recently used go first.
///
/// A prefix is not hashed but followed: a block is found by its own tokens and the identity of the block before it,
/// compared in full, so that no collision hands one request another's cache.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    max_idle: usize,
    /// Blocks of the cache.
    capacity: usize,
    /// Blocks that were ever taken.
    blocks: Vec<BlockState>,
    /// Taken blocks without content; the last one is reused next.
    empty: Vec<u32>,
    /// Published blocks without holders, by the time of their release.
    idle: BTreeMap<u64, u32>,
    published: HashMap<Arc<PrefixKey>, u32>,
    /// Slots of recurrent states, for running sequences and for snapshots at the ends of published blocks.
    states: StatePool,
    /// Counts releases.
    clock: u64,
    /// The next unused identity.
    next_content: ContentId,
}

#[derive(Debug, Default)]
struct BlockState {
    holders: usize,
    content: Option<BlockContent>,
    /// When it became idle, while it is.
    released: u64,
}

/// The content of a published block.
#[derive(Debug)]
struct BlockContent {
    id: ContentId,
    key: Arc<PrefixKey>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PrefixKey {
    prefix: BlockPrefix,
    tokens: Box<[u32]>,
}

/// The tokens before a block, as an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum BlockPrefix {
    /// No tokens.
    Start(CacheNamespace),
    /// The tokens of a published content and of its own prefix.
    After(ContentId),
}

/// Sequences share blocks within one namespace only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CacheNamespace {
    /// The caller's cache salt.
    pub salt: Option<Arc<str>>,
    /// The variant of the rotary embedding.
    pub rope_variant: usize,
    /// The adapter that changes the model.
    pub adapter: Option<AdapterId>,
}

/// The blocks that a sequence holds, in order.
#[derive(Debug)]
pub struct BlockTable {
    pub blocks: Vec<u32>,
    namespace: CacheNamespace,
    /// Contents of the first blocks, which are published, by this sequence or by others.
    contents: Vec<ContentId>,
    /// The recurrent state of a running sequence, if the model has recurrent layers.
    state: Option<SequenceState>,
    /// The last snapshot in its answer.
    snapshot: Option<ContentId>,
}

impl BlockTable {
    pub fn new(namespace: CacheNamespace) -> Self {
        Self { blocks: Vec::new(), namespace, contents: Vec::new(), state: None, snapshot: None }
    }

    /// The prefix of the published blocks.
    fn prefix(&self) -> BlockPrefix {
        match self.contents.last() {
            Some(content) => BlockPrefix::After(*content),
            None => BlockPrefix::Start(self.namespace.clone()),
        }
    }

    /// Slots of the recurrent state for the rows from token `start` to `end`.
    pub fn states(&self, start: usize, end: usize) -> SpanStates {
        let Some(SequenceState { slot, source }) = self.state else { return SpanStates::default() };
        let from = source.map_or(slot, |source| source.slot);
        SpanStates { from: (start > 0).then_some(from), saves: vec![StateSave { tokens: end, slot }] }
    }

    pub fn rope_variant(&self) -> usize {
        self.namespace.rope_variant
    }
}

impl BlockPool {
    /// A pool of `blocks` blocks, which keeps at most `max_idle` published blocks without holders, and of `states`
    /// slots for recurrent states, 0 if the model has no recurrent layers.
    pub fn new(blocks: usize, block_tokens: usize, max_idle: usize, states: usize) -> Self {
        Self {
            block_tokens,
            max_idle,
            capacity: blocks,
            blocks: Vec::new(),
            empty: Vec::new(),
            idle: BTreeMap::new(),
            published: HashMap::new(),
            clock: 0,
            next_content: 0,
            states: StatePool::new(states),
        }
    }

    /// Blocks that `tokens` tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks that can be allocated.
    pub fn available(&self) -> usize {
        self.capacity - self.used()
    }

    /// Blocks that sequences hold.
    pub fn used(&self) -> usize {
        self.blocks.len() - self.empty.len() - self.idle.len()
    }

    /// Published blocks without holders.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// State slots of running sequences.
    pub fn used_states(&self) -> usize {
        self.states.held()
    }

    /// Snapshots of recurrent states at the ends of published blocks.
    pub fn snapshots(&self) -> usize {
        self.states.snapshots()
    }

    /// The longest cached prefix of `tokens`, for an empty table. In a model with recurrent layers it ends at a
    /// snapshot.
    pub fn find(&self, table: &BlockTable, tokens: &[u32]) -> PrefixHit {
        let (mut hit, mut prefix) = (PrefixHit::default(), table.prefix());
        for tokens in tokens.chunks_exact(self.block_tokens) {
            let key = PrefixKey { prefix, tokens: tokens.into() };
            let Some(&block) = self.published.get(&key) else { break };
            let Some(content) = &self.blocks[block as usize].content else { break };
            prefix = BlockPrefix::After(content.id);
            hit.contents.push(content.id);
            hit.blocks.push(block);
        }
        hit.matched = hit.blocks.len();
        if self.states.is_used() {
            let usable = hit.contents.iter().rposition(|content| self.states.contains(*content)).map_or(0, |at| at + 1);
            hit.contents.truncate(usable);
            hit.blocks.truncate(usable);
        }
        hit.idle = hit.blocks.iter().filter(|block| self.blocks[**block as usize].holders == 0).count();
        hit
    }

    /// Whether one more sequence finds a state slot, if the model has recurrent layers.
    pub fn has_state(&self) -> bool {
        !self.states.is_used() || self.states.available() > 0
    }

    /// Gives an empty table the blocks of a prefix hit, and a state slot; false, with the table still empty, if there
    /// is no slot.
    pub fn share(&mut self, table: &mut BlockTable, hit: PrefixHit) -> bool {
        if self.states.is_used() {
            table.state = self.states.begin(hit.contents.last().copied());
            if table.state.is_none() {
                return false;
            }
        }
        for &block in &hit.blocks {
            let state = &mut self.blocks[block as usize];
            if state.holders == 0 {
                self.idle.remove(&state.released);
            }
            state.holders += 1;
        }
        table.blocks = hit.blocks;
        table.contents = hit.contents;
        true
    }

    /// Allocates blocks until a table holds `tokens` tokens; all or nothing.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(table.blocks.len());
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            let Some(block) = self.take() else { return false };
            self.blocks[block as usize].holders = 1;
            table.blocks.push(block);
        }
        true
    }

    fn take(&mut self) -> Option<u32> {
        if self.empty.is_empty() && self.blocks.len() < self.capacity {
            // Fresh blocks come last, so that memory becomes resident only as it is needed.
            self.empty.push(self.blocks.len() as u32);
            self.blocks.push(BlockState::default());
        } else if self.empty.is_empty() {
            self.evict();
        }
        self.empty.pop()
    }

    /// Empties the least recently used idle block.
    fn evict(&mut self) {
        if let Some((_, block)) = self.idle.pop_first() {
            self.unpublish(block);
            self.empty.push(block);
        }
    }

    fn unpublish(&mut self, block: u32) {
        if let Some(content) = self.blocks[block as usize].content.take() {
            self.published.remove(&content.key);
            self.states.remove(content.id);
        }
    }

    /// Publishes the table's blocks that the first `tokens` tokens fill.
    pub fn publish(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        for (i, tokens) in tokens.chunks_exact(self.block_tokens).enumerate().skip(table.contents.len()) {
            let key = Arc::new(PrefixKey { prefix: table.prefix(), tokens: tokens.into() });
            // If another sequence was first, lookups find its block, and this one stays private.
            let block = *self.published.entry(key.clone()).or_insert(table.blocks[i]);
            let content = self.blocks[block as usize].content.get_or_insert_with(|| {
                self.next_content += 1;
                BlockContent { id: self.next_content, key }
            });
            table.contents.push(content.id);
        }
    }

    /// Unpublishes the table's blocks from `first` on, after a pass that failed to compute them.
    pub fn retract(&mut self, table: &mut BlockTable, first: usize) {
        for block in table.blocks.iter().skip(first) {
            self.unpublish(*block);
        }
    }

    /// Frees a table's blocks, which the rope variant that follows cannot use. The sequence goes on running.
    pub fn enter(&mut self, table: &mut BlockTable, rope_variant: usize) {
        self.end_read(table);
        let state = table.state.take();
        self.release(table);
        let namespace = CacheNamespace { rope_variant, ..std::mem::take(&mut table.namespace) };
        *table = BlockTable { state, ..BlockTable::new(namespace) };
    }

    /// Frees the table's blocks beyond `tokens` tokens, none of which is published.
    pub fn shrink(&mut self, table: &mut BlockTable, tokens: usize) {
        let kept = self.needed(tokens).min(table.blocks.len());
        self.take_back(table.blocks.split_off(kept));
    }

    /// Frees a table's blocks and its state slot.
    pub fn release(&mut self, table: &mut BlockTable) {
        self.end_read(table);
        if let Some(state) = table.state.take() {
            self.states.give_back(state.slot);
        }
        self.take_back(std::mem::take(&mut table.blocks));
        *table = BlockTable::new(std::mem::take(&mut table.namespace));
    }

    fn take_back(&mut self, blocks: Vec<u32>) {
        // In reverse, so that a block is evicted before the blocks of its prefix, without which it is useless.
        for block in blocks.into_iter().rev() {
            let state = &mut self.blocks[block as usize];
            state.holders -= 1;
            if state.holders > 0 {
                continue;
            }
            if state.content.is_none() {
                self.empty.push(block);
                continue;
            }
            self.clock += 1;
            state.released = self.clock;
            self.idle.insert(self.clock, block);
            if self.idle.len() > self.max_idle {
                self.evict();
            }
        }
    }
}

/// A cached prefix.
#[derive(Debug, Default)]
pub struct PrefixHit {
    pub blocks: Vec<u32>,
    /// Blocks without holders.
    pub idle: usize,
    /// Cached blocks of the sequence, including blocks beyond the last snapshot.
    pub matched: usize,
    contents: Vec<ContentId>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table_of(pool: &mut BlockPool, tokens: &[u32]) -> BlockTable {
        let mut table = BlockTable::new(CacheNamespace::default());
        let hit = pool.find(&table, tokens);
        assert!(pool.share(&mut table, hit));
        assert!(pool.grow(&mut table, tokens.len()));
        pool.publish(&mut table, tokens);
        table
    }

    #[test]
    fn common_prefixes_share_blocks() {
        let mut pool = BlockPool::new(8, 2, 8, 0);
        let mut a = table_of(&mut pool, &[1, 2, 3, 4, 5]);
        let mut b = table_of(&mut pool, &[1, 2, 3, 9, 5]);
        assert_eq!(a.blocks[0], b.blocks[0]);
        assert_ne!(a.blocks[1], b.blocks[1]);
        assert_eq!(pool.used(), 5);
        pool.release(&mut a);
        assert_eq!((pool.used(), pool.idle()), (3, 1), "the block that was not full is empty again");
        pool.release(&mut b);
        assert_eq!((pool.used(), pool.idle()), (0, 3));
        let c = table_of(&mut pool, &[1, 2, 3, 4]);
        assert_eq!((c.blocks.len(), pool.idle()), (2, 1));
    }

    #[test]
    fn namespaces_and_prefixes_keep_equal_tokens_apart() {
        let mut pool = BlockPool::new(8, 2, 8, 0);
        let a = table_of(&mut pool, &[1, 2, 7, 7]);
        let b = table_of(&mut pool, &[3, 4, 7, 7]);
        assert_ne!(a.blocks[1], b.blocks[1]);
        let salted = BlockTable::new(CacheNamespace { salt: Some("tenant".into()), ..CacheNamespace::default() });
        assert!(pool.find(&salted, &[1, 2, 7, 7]).blocks.is_empty());
        let other_positions = BlockTable::new(CacheNamespace { rope_variant: 1, ..CacheNamespace::default() });
        assert!(pool.find(&other_positions, &[1, 2, 7, 7]).blocks.is_empty());
        let adapted = BlockTable::new(CacheNamespace { adapter: Some(1), ..CacheNamespace::default() });
        assert!(pool.find(&adapted, &[1, 2, 7, 7]).blocks.is_empty());
    }

    #[test]
    fn least_recently_used_blocks_are_evicted_first_and_tails_before_heads() {
        let mut pool = BlockPool::new(4, 2, 4, 0);
        let mut old = table_of(&mut pool, &[1, 1, 2, 2]);
        let mut new = table_of(&mut pool, &[3, 3, 4, 4]);
        pool.release(&mut old);
        pool.release(&mut new);
        let mut other = table_of(&mut pool, &[9]);
        let empty = BlockTable::new(CacheNamespace::default());
        assert_eq!(pool.find(&empty, &[1, 1, 2, 2]).blocks.len(), 1, "the old tail went");
        assert_eq!(pool.find(&empty, &[3, 3, 4, 4]).blocks.len(), 2);
        pool.release(&mut other);
    }

    #[test]
    fn retracted_blocks_are_not_found() {
        let mut pool = BlockPool::new(4, 2, 4, 0);
        let mut table = table_of(&mut pool, &[1, 1, 2, 2]);
        pool.retract(&mut table, 1);
        pool.release(&mut table);
        assert_eq!(pool.find(&table, &[1, 1, 2, 2]).blocks.len(), 1);
        assert_eq!((pool.used(), pool.idle()), (0, 1));
    }

    #[derive(Debug, Clone)]
    enum Action {
        Start(Vec<u32>),
        Release(usize),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let start = prop::collection::vec(0u32..2, 1..14).prop_map(Action::Start);
        prop::collection::vec(prop_oneof![start, (0usize..8).prop_map(Action::Release)], 1..60)
    }

    proptest! {
        /// No block is lost or held twice by accident, and a block that is found has the content it was published
        /// under.
        #[test]
        fn found_blocks_have_the_published_content(actions in actions(), blocks in 1usize..24, max_idle in 0usize..24) {
            const BLOCK: usize = 3;
            let mut pool = BlockPool::new(blocks, BLOCK, max_idle, 0);
            let mut memory = vec![Vec::new(); blocks];
            let mut live: Vec<(BlockTable, Vec<u32>)> = Vec::new();
            for action in actions {
                match action {
                    Action::Start(tokens) => {
                        let mut table = BlockTable::new(CacheNamespace::default());
                        let hit = pool.find(&table, &tokens);
                        for (i, block) in hit.blocks.iter().enumerate() {
                            prop_assert_eq!(&memory[*block as usize], &tokens[..(i + 1) * BLOCK]);
                        }
                        let shared = hit.blocks.len();
                        assert!(pool.share(&mut table, hit));
                        if pool.grow(&mut table, tokens.len()) {
                            for i in shared..tokens.len() / BLOCK {
                                memory[table.blocks[i] as usize] = tokens[..(i + 1) * BLOCK].to_vec();
                            }
                            pool.publish(&mut table, &tokens);
                            live.push((table, tokens));
                        } else {
                            pool.release(&mut table);
                        }
                    }
                    Action::Release(i) if i < live.len() => pool.release(&mut live.swap_remove(i).0),
                    Action::Release(_) => {}
                }
                let mut held: Vec<u32> = live.iter().flat_map(|(table, _)| table.blocks.clone()).collect();
                held.sort_unstable();
                held.dedup();
                prop_assert_eq!(pool.used(), held.len());
                prop_assert!(pool.idle() <= max_idle);
                for (table, tokens) in &live {
                    for i in 0..tokens.len() / BLOCK {
                        prop_assert_eq!(&memory[table.blocks[i] as usize], &tokens[..(i + 1) * BLOCK]);
                    }
                }
            }
        }
    }
}
