use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::adapters::AdapterId;

/// Hands out the blocks of the key/value cache and counts who holds them. Which memory they are is
/// the decoder's business.
///
/// A full block can be published under its tokens and all tokens before them; then other sequences
/// with that prefix hold it, too. Published blocks that nobody holds any more stay, up to a limit,
/// until their place is needed: the least recently used go first.
///
/// The prefix is not hashed but followed: a block is found by its own tokens and the identity of the
/// block before it, compared in full, so that no collision can hand one request another's cache.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    max_idle: usize,
    /// Blocks there may be.
    capacity: usize,
    /// Those that were ever taken.
    blocks: Vec<BlockState>,
    /// Those of them that hold nothing of use; the last one is taken next.
    empty: Vec<u32>,
    /// Published blocks that nobody holds, by the time of their release.
    idle: BTreeMap<u64, u32>,
    published: HashMap<Arc<PrefixKey>, u32>,
    /// Counts releases.
    clock: u64,
    /// The next unused identity.
    next_content: u64,
}

#[derive(Debug, Default)]
struct BlockState {
    holders: usize,
    content: Option<BlockContent>,
    /// When it became idle, while it is.
    released: u64,
}

/// What a published block holds.
#[derive(Debug)]
struct BlockContent {
    id: u64,
    key: Arc<PrefixKey>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PrefixKey {
    prefix: BlockPrefix,
    tokens: Box<[u32]>,
}

/// The tokens before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum BlockPrefix {
    /// None.
    Start(CacheNamespace),
    /// Those of the published content of this identity, and before.
    After(u64),
}

/// Within what sequences share blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CacheNamespace {
    /// What a caller keeps its prompts apart by.
    pub salt: Option<Arc<str>>,
    /// How positions are encoded.
    pub rope_variant: usize,
    /// What changes the model.
    pub adapter: Option<AdapterId>,
}

/// The blocks that a sequence holds, in order.
#[derive(Debug)]
pub struct BlockTable {
    pub blocks: Vec<u32>,
    namespace: CacheNamespace,
    /// Blocks at the beginning whose contents are published, by this sequence or by others.
    published: usize,
    /// The prefix that those make.
    prefix: BlockPrefix,
}

impl BlockTable {
    pub fn new(namespace: CacheNamespace) -> Self {
        Self { blocks: Vec::new(), prefix: BlockPrefix::Start(namespace.clone()), namespace, published: 0 }
    }

    pub fn rope_variant(&self) -> usize {
        self.namespace.rope_variant
    }
}

impl BlockPool {
    /// A pool of `blocks` blocks that keeps at most `max_idle` published blocks which nobody holds.
    pub fn new(blocks: usize, block_tokens: usize, max_idle: usize) -> Self {
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
        }
    }

    /// Blocks that `tokens` tokens take.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Blocks that can be handed out.
    pub fn available(&self) -> usize {
        self.capacity - self.used()
    }

    /// Blocks that sequences hold.
    pub fn used(&self) -> usize {
        self.blocks.len() - self.empty.len() - self.idle.len()
    }

    /// Published blocks that nobody holds.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Published blocks that hold the beginning of `tokens`, for an empty table.
    pub fn find(&self, table: &BlockTable, tokens: &[u32]) -> PrefixHit {
        let mut hit = PrefixHit { blocks: Vec::new(), idle: 0, prefix: BlockPrefix::Start(table.namespace.clone()) };
        for tokens in tokens.chunks_exact(self.block_tokens) {
            let key = PrefixKey { prefix: hit.prefix.clone(), tokens: tokens.into() };
            let Some(&block) = self.published.get(&key) else { break };
            let BlockState { holders, content: Some(content), .. } = &self.blocks[block as usize] else { break };
            hit.idle += usize::from(*holders == 0);
            hit.prefix = BlockPrefix::After(content.id);
            hit.blocks.push(block);
        }
        hit
    }

    /// Lets an empty table hold what was found.
    pub fn share(&mut self, table: &mut BlockTable, hit: PrefixHit) {
        for &block in &hit.blocks {
            let state = &mut self.blocks[block as usize];
            if state.holders == 0 {
                self.idle.remove(&state.released);
            }
            state.holders += 1;
        }
        table.published = hit.blocks.len();
        table.blocks = hit.blocks;
        table.prefix = hit.prefix;
    }

    /// Makes a table big enough for `tokens` tokens; all or nothing.
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
            // One that was never taken comes after those that were, so that memory is touched only as it is needed.
            self.empty.push(self.blocks.len() as u32);
            self.blocks.push(BlockState::default());
        } else if self.empty.is_empty() {
            self.evict();
        }
        self.empty.pop()
    }

    /// Empties the block that has been idle for longest.
    fn evict(&mut self) {
        if let Some((_, block)) = self.idle.pop_first() {
            self.unpublish(block);
            self.empty.push(block);
        }
    }

    fn unpublish(&mut self, block: u32) {
        if let Some(content) = self.blocks[block as usize].content.take() {
            self.published.remove(&content.key);
        }
    }

    /// Publishes the table's blocks that the first `tokens` tokens fill.
    pub fn publish(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        for (i, tokens) in tokens.chunks_exact(self.block_tokens).enumerate().skip(table.published) {
            let key = Arc::new(PrefixKey { prefix: table.prefix.clone(), tokens: tokens.into() });
            // Where another sequence was first, its block is the one that is found, and this one is private.
            let block = *self.published.entry(key.clone()).or_insert(table.blocks[i]);
            let content = self.blocks[block as usize].content.get_or_insert_with(|| {
                self.next_content += 1;
                BlockContent { id: self.next_content, key }
            });
            table.prefix = BlockPrefix::After(content.id);
            table.published = i + 1;
        }
    }

    /// Makes sure that nobody finds the table's blocks from `first` on: what they were to hold was
    /// never computed.
    pub fn retract(&mut self, table: &mut BlockTable, first: usize) {
        for block in table.blocks.iter().skip(first) {
            self.unpublish(*block);
        }
    }

    /// Takes a table's blocks back, since they are of no use with the rope variant that follows.
    pub fn enter(&mut self, table: &mut BlockTable, rope_variant: usize) {
        self.release(table);
        *table = BlockTable::new(CacheNamespace { rope_variant, ..std::mem::take(&mut table.namespace) });
    }

    /// Takes back what a table has beyond `tokens` tokens, which none of its published blocks is.
    pub fn shrink(&mut self, table: &mut BlockTable, tokens: usize) {
        let kept = self.needed(tokens).min(table.blocks.len());
        self.take_back(table.blocks.split_off(kept));
    }

    /// Takes a table's blocks back.
    pub fn release(&mut self, table: &mut BlockTable) {
        self.take_back(std::mem::take(&mut table.blocks));
        *table = BlockTable::new(std::mem::take(&mut table.namespace));
    }

    fn take_back(&mut self, blocks: Vec<u32>) {
        // The last one first: a block is of no use without those before it, so it is to go before them.
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

/// A beginning of a sequence that is in the cache already.
#[derive(Debug)]
pub struct PrefixHit {
    pub blocks: Vec<u32>,
    /// How many of the blocks nobody holds.
    pub idle: usize,
    prefix: BlockPrefix,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table_of(pool: &mut BlockPool, tokens: &[u32]) -> BlockTable {
        let mut table = BlockTable::new(CacheNamespace::default());
        let hit = pool.find(&table, tokens);
        pool.share(&mut table, hit);
        assert!(pool.grow(&mut table, tokens.len()));
        pool.publish(&mut table, tokens);
        table
    }

    #[test]
    fn sequences_share_the_blocks_of_a_common_prefix() {
        let mut pool = BlockPool::new(8, 2, 8);
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
    fn equal_tokens_after_other_prefixes_or_salts_are_not_shared() {
        let mut pool = BlockPool::new(8, 2, 8);
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
    fn the_least_recently_used_block_goes_first_and_tails_before_heads() {
        let mut pool = BlockPool::new(4, 2, 4);
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
    fn what_was_never_computed_is_not_found() {
        let mut pool = BlockPool::new(4, 2, 4);
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
        /// Whatever happens, no block is lost or held twice by chance, and a block that is found holds
        /// what was put there.
        #[test]
        fn blocks_hold_what_they_are_found_for(actions in actions(), blocks in 1usize..24, max_idle in 0usize..24) {
            const BLOCK: usize = 3;
            let mut pool = BlockPool::new(blocks, BLOCK, max_idle);
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
                        pool.share(&mut table, hit);
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
