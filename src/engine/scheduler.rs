use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::blocks::{BlockPool, BlockTable, Realm};

/// Names a sequence in the scheduler; later ones are greater.
pub type SequenceId = u64;

/// Rows of a pass, beside those of streams, that logits are computed for: each takes as many numbers as the vocabulary has
/// tokens.
const MAX_SCORED_TOKENS: usize = 64;

/// How often the sequence that waits for longest lets those of higher priority pass.
const MAX_OVERTAKEN: usize = 64;

/// The bounds of a pass and of the cache.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sequences that run at the same time.
    pub max_running: usize,
    /// Tokens of prompts in one forward pass.
    pub max_batched_tokens: usize,
    /// Blocks in the key/value cache.
    pub cache_blocks: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Blocks kept for later requests while no sequence holds them.
    pub max_idle_blocks: usize,
}

/// Decides which tokens of which sequences the next pass computes. It knows tokens and blocks, and
/// neither tensors nor time.
///
/// A sequence is computed as far as its tokens go; then a new one is sampled. So a prefill and a
/// decode differ only in how many tokens are left, and a preempted sequence is one with none
/// computed.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, Progress>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// The sequence that waits for longest, and how many came before it that arrived later.
    overtaken: (SequenceId, usize),
    preemptions: u64,
}

/// The order in which sequences are served: by priority, and among equals as they came.
type Rank = (Reverse<i32>, SequenceId);

#[derive(Debug)]
struct Progress {
    tokens: Vec<u32>,
    computed: usize,
    /// What may follow the tokens.
    draft: Vec<u32>,
    table: BlockTable,
    rank: Rank,
    paused: bool,
    scored: bool,
}

impl Progress {
    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

/// A sequence for the scheduler.
#[derive(Debug, Default)]
pub struct Arrival {
    pub tokens: Vec<u32>,
    /// Greater ones are served first.
    pub priority: i32,
    /// Cached prefixes are shared within the same one only.
    pub realm: Realm,
    /// Whether the logits after all of its tokens are wanted, so that what is cached of them is of no use.
    pub scored: bool,
}

/// Tokens of one sequence for the next pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub id: SequenceId,
    pub start: usize,
    pub len: usize,
    /// Whether these are its last tokens, so that the next one is sampled.
    pub samples: bool,
    /// Tokens that may follow them. What is computed and sampled for those that do saves passes.
    pub draft: Vec<u32>,
    /// Whether the logits after all of these tokens are wanted.
    pub scored: bool,
    /// How its positions are encoded.
    pub regime: usize,
    pub blocks: Vec<u32>,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        Self {
            pool: BlockPool::new(limits.cache_blocks, limits.block_tokens, limits.max_idle_blocks),
            limits,
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            overtaken: (0, 0),
            preemptions: 0,
        }
    }

    /// Lets a sequence wait for its turn.
    pub fn add(&mut self, id: SequenceId, arrival: Arrival) {
        let Arrival { tokens, priority, realm, scored } = arrival;
        let rank = (Reverse(priority), id);
        self.waiting.insert(rank);
        let table = BlockTable::new(realm);
        let progress = Progress { tokens, computed: 0, draft: Vec::new(), table, rank, paused: false, scored };
        self.sequences.insert(id, progress);
    }

    /// Forgets a sequence and frees its blocks.
    pub fn remove(&mut self, id: SequenceId) {
        if let Some(mut progress) = self.sequences.remove(&id) {
            self.pool.release(&mut progress.table);
            self.waiting.remove(&progress.rank);
            self.running.remove(&progress.rank);
        }
    }

    /// A paused sequence is not computed; it gives its blocks up if others wait for them.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.paused = paused;
        }
    }

    /// Notes that a chunk has been computed, and which tokens were sampled after it: those of its draft that were
    /// right, and one more.
    pub fn computed(&mut self, chunk: &Chunk, sampled: &[u32]) {
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            let right = sampled.len().saturating_sub(1);
            progress.computed = chunk.start + chunk.len + right;
            progress.tokens.extend(sampled);
            progress.draft.clear();
            self.pool.publish(&mut progress.table, &progress.tokens[..progress.computed]);
            self.pool.shrink(&mut progress.table, progress.computed);
        }
    }

    /// Notes which tokens may follow those of a sequence, until one is sampled.
    pub fn set_draft(&mut self, id: SequenceId, draft: Vec<u32>) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.draft = draft;
        }
    }

    /// Notes how the positions of a sequence are encoded from now on. If that is new, it is computed anew.
    pub fn set_regime(&mut self, id: SequenceId, regime: usize) {
        if let Some(progress) = self.sequences.get_mut(&id).filter(|progress| progress.table.regime() != regime) {
            self.pool.enter(&mut progress.table, regime);
            progress.computed = 0;
        }
    }

    /// Notes that a chunk was not computed after all. Its sequence must be removed.
    pub fn failed(&mut self, chunk: &Chunk) {
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            self.pool.retract(&mut progress.table, chunk.start / self.limits.block_tokens);
        }
    }

    /// The tokens of a chunk, its draft not among them.
    pub fn tokens(&self, chunk: &Chunk) -> &[u32] {
        self.sequences.get(&chunk.id).map_or(&[], |progress| &progress.tokens[chunk.start..chunk.start + chunk.len])
    }

    /// Sequences that run, paused ones among them.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Blocks that sequences hold.
    pub fn used_blocks(&self) -> usize {
        self.pool.used()
    }

    /// Blocks kept for later requests.
    pub fn idle_blocks(&self) -> usize {
        self.pool.idle()
    }

    /// How often a sequence had to give its blocks up.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The next pass; empty if there is nothing to compute. `pace` says how many tokens of prompts and
    /// drafts may share the pass with that many streams which wait for their next token.
    pub fn schedule(&mut self, pace: impl Fn(usize) -> usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let ids = |of: fn(&Progress) -> bool| -> Vec<SequenceId> {
            self.ready().filter(|progress| of(progress)).map(|progress| progress.rank.1).collect()
        };
        let (decodes, prefills) = (ids(|progress| progress.left() == 1), ids(|progress| progress.left() > 1));
        // Streams that wait for their next token go first, all of them.
        for id in decodes {
            self.take(id, 1, &mut chunks);
        }
        let mut budget = self.limits.max_batched_tokens;
        if !chunks.is_empty() {
            budget = budget.min(pace(chunks.len()));
        }
        for id in prefills {
            budget -= self.take(id, budget, &mut chunks);
        }
        for chunk in &chunks {
            self.publish(chunk);
        }
        // Nothing that is in the pass gives way any more, so newcomers may share what it will compute.
        while budget > 0
            && let Some(id) = self.admit()
        {
            let taken = self.take(id, budget, &mut chunks);
            if taken == 0 {
                break;
            }
            budget -= taken;
            if let Some(chunk) = chunks.last() {
                self.publish(chunk);
            }
        }
        self.add_drafts(&mut chunks, budget);
        chunks
    }

    /// Adds drafts to the chunks they follow, in equal parts of what others have left of the budget.
    fn add_drafts(&mut self, chunks: &mut [Chunk], mut budget: usize) {
        let drafted = |chunk: &Chunk| self.sequences.get(&chunk.id).is_some_and(|progress| !progress.draft.is_empty());
        let drafting: Vec<_> = chunks.iter_mut().filter(|chunk| chunk.samples && drafted(chunk)).collect();
        let count = drafting.len();
        for (before, chunk) in drafting.into_iter().enumerate() {
            self.add_draft(chunk, budget.div_ceil(count - before));
            budget -= chunk.draft.len();
        }
    }

    /// Adds at most `len` tokens of a draft. Nobody gives way for it.
    fn add_draft(&mut self, chunk: &mut Chunk, len: usize) {
        let Some(progress) = self.sequences.get_mut(&chunk.id) else { return };
        let end = chunk.start + chunk.len;
        let blocks = progress.table.blocks.len() + self.pool.available();
        let mut draft = std::mem::take(&mut progress.draft);
        draft.truncate(len.min(blocks * self.limits.block_tokens - end));
        if self.pool.grow(&mut progress.table, end + draft.len()) {
            chunk.blocks.clone_from(&progress.table.blocks);
            chunk.draft = draft;
        }
    }

    /// Running sequences that are not paused, in rank.
    fn ready(&self) -> impl Iterator<Item = &Progress> {
        self.running.iter().filter_map(|(_, id)| self.sequences.get(id)).filter(|progress| !progress.paused)
    }

    /// Schedules at most `budget` tokens of a running sequence and says how many. If blocks run out,
    /// others give way, or it does.
    fn take(&mut self, id: SequenceId, budget: usize, chunks: &mut Vec<Chunk>) -> usize {
        loop {
            let Some(progress) = self.sequences.get_mut(&id) else { return 0 };
            let (start, left) = (progress.computed, progress.left());
            let mut len = left.min(budget);
            if progress.scored {
                len = len.min(MAX_SCORED_TOKENS.saturating_sub(scored_tokens(chunks)));
            }
            // Another may have taken its place meanwhile.
            if len == 0 || !self.running.contains(&progress.rank) {
                return 0;
            }
            if self.pool.grow(&mut progress.table, start + len) {
                let (regime, blocks) = (progress.table.regime(), progress.table.blocks.clone());
                let (samples, scored, draft) = (len == left, progress.scored, Vec::new());
                chunks.push(Chunk { id, start, len, samples, draft, scored, regime, blocks });
                return len;
            }
            let Some(victim) = self.victim() else { return 0 };
            chunks.retain(|chunk| chunk.id != victim);
            self.preempt(victim);
        }
    }

    /// Who gives way next: one that is paused, else the last in rank.
    fn victim(&self) -> Option<SequenceId> {
        let paused = self.running.iter().rev().find(|(_, id)| self.is_paused(*id));
        paused.or(self.running.last()).map(|(_, id)| *id)
    }

    fn is_paused(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|progress| progress.paused)
    }

    fn preempt(&mut self, id: SequenceId) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            self.pool.release(&mut progress.table);
            progress.computed = 0;
            self.running.remove(&progress.rank);
            self.waiting.insert(progress.rank);
            self.preemptions += 1;
        }
    }

    /// Lets others find the blocks that a chunk fills.
    fn publish(&mut self, chunk: &Chunk) {
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            self.pool.publish(&mut progress.table, &progress.tokens[..chunk.start + chunk.len]);
        }
    }

    /// Moves the next waiting sequence to the running ones, with what the cache knows of it, if the
    /// cache can hold all its tokens. Paused ones make room for it: a reader that does not read holds
    /// up nobody.
    fn admit(&mut self) -> Option<SequenceId> {
        let id = self.next_waiting()?;
        loop {
            let progress = self.sequences.get(&id)?;
            // The last token is computed in any case: its logits are wanted, or those of all.
            let known = if progress.scored { 0 } else { progress.tokens.len() - 1 };
            let hit = self.pool.find(&progress.table, &progress.tokens[..known]);
            let taken = self.pool.needed(progress.tokens.len()) - hit.blocks.len() + hit.idle;
            // A block for each that runs, lest the newcomer has to give way at once.
            let spare = self.ready().count();
            if self.running.len() < self.limits.max_running && taken + spare <= self.pool.available() {
                self.note_overtaking(id);
                let progress = self.sequences.get_mut(&id)?;
                progress.computed = hit.blocks.len() * self.limits.block_tokens;
                self.pool.share(&mut progress.table, hit);
                self.waiting.remove(&progress.rank);
                self.running.insert(progress.rank);
                return Some(id);
            }
            let paused = self.running.iter().rev().find(|(_, id)| self.is_paused(*id));
            self.preempt(paused?.1);
        }
    }

    /// The first in rank, unless the one that waits for longest has been overtaken too often.
    fn next_waiting(&self) -> Option<SequenceId> {
        let oldest = self.candidates().min()?;
        if self.overtaken == (oldest, MAX_OVERTAKEN) { Some(oldest) } else { self.candidates().next() }
    }

    /// Waiting sequences that can go on, in rank.
    fn candidates(&self) -> impl Iterator<Item = SequenceId> {
        self.waiting.iter().map(|(_, id)| *id).filter(|id| !self.is_paused(*id))
    }

    fn note_overtaking(&mut self, admitted: SequenceId) {
        let Some(oldest) = self.candidates().min().filter(|oldest| *oldest != admitted) else { return };
        let count = if self.overtaken.0 == oldest { self.overtaken.1 } else { 0 };
        self.overtaken = (oldest, count + 1);
    }
}

fn scored_tokens(chunks: &[Chunk]) -> usize {
    chunks.iter().filter(|chunk| chunk.scored).map(|chunk| chunk.len).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = 4;

    fn scheduler(max_running: usize, max_batched_tokens: usize, cache_blocks: usize) -> Scheduler {
        let max_idle_blocks = cache_blocks;
        Scheduler::new(Limits { max_running, max_batched_tokens, cache_blocks, block_tokens: BLOCK, max_idle_blocks })
    }

    /// `len` tokens that begin like no other sequence's.
    fn arrival(id: SequenceId, len: usize) -> Arrival {
        Arrival { tokens: vec![100 + id as u32; len], ..Arrival::default() }
    }

    fn run(scheduler: &mut Scheduler, pace: usize) -> Vec<(SequenceId, usize, usize, bool)> {
        let chunks = scheduler.schedule(|_| pace);
        for chunk in &chunks {
            scheduler.computed(chunk, if chunk.samples { &[0] } else { &[] });
        }
        chunks.into_iter().map(|c| (c.id, c.start, c.len, c.samples)).collect()
    }

    fn step(scheduler: &mut Scheduler) -> Vec<(SequenceId, usize, usize, bool)> {
        run(scheduler, usize::MAX)
    }

    #[test]
    fn a_long_prompt_shares_passes_with_decodes_at_the_pace_it_is_given() {
        let mut s = scheduler(8, 8, 100);
        s.add(0, arrival(0, 3));
        assert_eq!(step(&mut s), [(0, 0, 3, true)]);
        s.add(1, arrival(1, 20));
        assert_eq!(step(&mut s), [(0, 3, 1, true), (1, 0, 8, false)]);
        assert_eq!(run(&mut s, 5), [(0, 4, 1, true), (1, 8, 5, false)]);
        assert_eq!(step(&mut s), [(0, 5, 1, true), (1, 13, 7, true)]);
        assert_eq!(step(&mut s), [(0, 6, 1, true), (1, 20, 1, true)]);
    }

    #[test]
    fn no_stream_waits_for_its_next_token_because_of_the_budget() {
        let mut s = scheduler(100, 8, 100);
        (0..20).for_each(|id| s.add(id, arrival(id, 1)));
        (0..3).for_each(|_| drop(step(&mut s)));
        assert_eq!(step(&mut s).len(), 20);
    }

    #[test]
    fn the_youngest_gives_way_when_blocks_run_out_and_comes_back() {
        let mut s = scheduler(8, 100, 4);
        s.add(0, arrival(0, 4));
        s.add(1, arrival(1, 4));
        assert_eq!(step(&mut s), [(0, 0, 4, true), (1, 0, 4, true)]);
        for _ in 0..4 {
            assert_eq!(step(&mut s).len(), 2);
        }
        // Both need a third block; there is none.
        assert_eq!(step(&mut s), [(0, 8, 1, true)]);
        assert_eq!((s.used_blocks(), s.preemptions()), (3, 1));
        s.remove(0);
        let chunks = step(&mut s);
        assert_eq!(chunks.last(), Some(&(1, 4, 5, true)), "what the cache still had of it is not computed again");
        s.remove(1);
        assert_eq!(s.used_blocks(), 0);
    }

    #[test]
    fn prompts_with_a_common_head_compute_it_once_even_in_one_pass() {
        let mut s = scheduler(8, 100, 100);
        let tokens = |last| Arrival { tokens: [vec![1; 9], vec![last]].concat(), ..Arrival::default() };
        s.add(0, tokens(2));
        s.add(1, tokens(3));
        assert_eq!(step(&mut s), [(0, 0, 10, true), (1, 8, 2, true)]);
        s.remove(0);
        s.remove(1);
        s.add(2, tokens(2));
        assert_eq!(step(&mut s), [(2, 8, 2, true)]);
        s.add(3, Arrival { realm: Realm { salt: Some("other".into()), ..Realm::default() }, ..tokens(2) });
        assert_eq!(step(&mut s), [(2, 10, 1, true), (3, 0, 10, true)]);
    }

    #[test]
    fn a_prompt_that_is_cached_as_a_whole_still_computes_its_last_token() {
        let mut s = scheduler(8, 100, 100);
        s.add(0, arrival(7, 8));
        assert_eq!(step(&mut s), [(0, 0, 8, true)]);
        s.add(1, arrival(7, 8));
        assert_eq!(step(&mut s), [(0, 8, 1, true), (1, 4, 4, true)]);
    }

    #[test]
    fn scored_sequences_compute_all_their_tokens_and_few_in_a_pass() {
        let mut s = scheduler(8, 100, 100);
        s.add(0, arrival(7, 70));
        assert_eq!(step(&mut s), [(0, 0, 70, true)]);
        s.remove(0);
        s.add(1, Arrival { scored: true, ..arrival(7, 70) });
        s.add(2, Arrival { scored: true, ..arrival(8, 70) });
        assert_eq!(step(&mut s), [(1, 0, 64, false)]);
        assert_eq!(step(&mut s), [(1, 64, 6, true), (2, 0, 58, false)]);
        s.remove(1);
        s.add(3, arrival(7, 70));
        assert_eq!(step(&mut s), [(2, 58, 12, true), (3, 68, 2, true)], "others find what it computed");
    }

    #[test]
    fn nothing_of_a_failed_pass_is_found_later() {
        let mut s = scheduler(8, 100, 100);
        s.add(0, arrival(7, 8));
        for chunk in s.schedule(|_| 100) {
            s.failed(&chunk);
            s.remove(chunk.id);
        }
        s.add(1, arrival(7, 8));
        assert_eq!(step(&mut s), [(1, 0, 8, true)]);
    }

    #[test]
    fn higher_priorities_go_first_and_nobody_starves() {
        let mut s = scheduler(1, 100, 100);
        s.add(0, arrival(0, 1));
        s.add(1, Arrival { priority: 1, ..arrival(1, 1) });
        s.add(2, arrival(2, 1));
        let mut order = Vec::new();
        for id in 3..3 + 2 * MAX_OVERTAKEN as u64 {
            s.add(id, Arrival { priority: 1, ..arrival(id, 1) });
            let served = step(&mut s)[0].0;
            order.push(served);
            s.remove(served);
        }
        assert_eq!(order[..3], [1, 3, 4]);
        assert_eq!(order[MAX_OVERTAKEN], 0, "it has waited for long enough");
        assert_eq!(order.iter().filter(|id| **id == 2).count(), 0);
    }

    #[test]
    fn a_paused_sequence_costs_nothing_and_goes_on_where_it_was() {
        let mut s = scheduler(1, 100, 100);
        s.add(0, arrival(0, 2));
        assert_eq!(step(&mut s), [(0, 0, 2, true)]);
        s.set_paused(0, true);
        assert_eq!(step(&mut s), []);
        s.set_paused(0, false);
        assert_eq!(step(&mut s), [(0, 2, 1, true)]);
    }

    #[test]
    fn a_paused_sequence_makes_room_for_others_and_comes_back() {
        let mut s = scheduler(1, 100, 100);
        s.add(0, arrival(0, 2));
        s.add(1, arrival(1, 2));
        assert_eq!(step(&mut s), [(0, 0, 2, true)]);
        s.set_paused(0, true);
        assert_eq!(step(&mut s), [(1, 0, 2, true)]);
        s.set_paused(0, false);
        assert_eq!(step(&mut s), [(1, 2, 1, true)]);
        s.remove(1);
        assert_eq!(step(&mut s), [(0, 0, 3, true)]);
    }

    /// What drafts the chunks of a pass have.
    fn drafts(chunks: &[Chunk]) -> Vec<(SequenceId, usize)> {
        chunks.iter().map(|chunk| (chunk.id, chunk.draft.len())).collect()
    }

    #[test]
    fn drafts_share_what_prompts_leave_of_a_pass() {
        let mut s = scheduler(8, 100, 100);
        (0..2).for_each(|id| s.add(id, arrival(id, 3)));
        step(&mut s);
        (0..2).for_each(|id| s.set_draft(id, vec![0; 6]));
        s.add(2, arrival(2, 4));
        assert_eq!(drafts(&s.schedule(|_| 9)), [(0, 3), (1, 2), (2, 0)]);
    }

    #[test]
    fn nothing_gives_way_for_a_draft_and_wrong_ones_keep_no_block() {
        let mut s = scheduler(8, 100, 3);
        (0..2).for_each(|id| s.add(id, arrival(id, 2)));
        step(&mut s);
        (0..2).for_each(|id| s.set_draft(id, vec![0; 6]));
        let chunks = s.schedule(|_| 100);
        assert_eq!(drafts(&chunks), [(0, 5), (1, 1)], "there is one free block");
        assert_eq!((s.used_blocks(), s.preemptions()), (3, 0));
        s.computed(&chunks[0], &[0]);
        s.computed(&chunks[1], &[1]);
        assert_eq!(s.used_blocks(), 2);
        assert_eq!(step(&mut s), [(0, 3, 1, true), (1, 3, 1, true)]);
    }

    #[test]
    fn right_tokens_of_a_draft_are_shared_and_wrong_ones_are_not() {
        for (right, cached) in [(6, 8), (4, 4), (5, 8)] {
            let mut s = scheduler(8, 100, 100);
            s.add(0, arrival(7, 2));
            step(&mut s);
            s.set_draft(0, vec![1; 6]);
            let chunks = s.schedule(|_| 100);
            s.computed(&chunks[0], &[vec![1; right], vec![2]].concat());
            s.remove(0);
            let tokens = [vec![107; 2], vec![0], vec![1; 9]].concat();
            s.add(1, Arrival { tokens, ..Arrival::default() });
            assert_eq!(step(&mut s), [(1, cached, 12 - cached, true)]);
        }
    }

    /// A decoder whose next token is a function of all tokens before it, which it finds in its cache
    /// only: wrong blocks give wrong tokens.
    struct FakeDecoder(Vec<u32>);

    impl FakeDecoder {
        fn next(context: impl Iterator<Item = u32>) -> u32 {
            context.fold(17, |hash: u32, token| hash.wrapping_mul(31).wrapping_add(token)) % 3
        }

        fn compute(&mut self, chunk: &Chunk, tokens: &[u32]) {
            for (token, position) in tokens.iter().chain(&chunk.draft).zip(chunk.start..) {
                self.0[Self::slot(chunk, position)] = *token;
            }
        }

        /// What is right of the chunk's draft, and the token after that; at most `limit`.
        fn sample(&self, chunk: &Chunk, limit: usize) -> Vec<u32> {
            let mut sampled = Vec::new();
            for len in (chunk.start + chunk.len..).take(limit.min(1 + chunk.draft.len())) {
                sampled.push(Self::next((0..len).map(|position| self.0[Self::slot(chunk, position)])));
                if chunk.draft.get(sampled.len() - 1) != sampled.last() {
                    break;
                }
            }
            sampled
        }

        fn slot(chunk: &Chunk, position: usize) -> usize {
            chunk.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK
        }
    }

    #[derive(Debug, Clone)]
    struct Request {
        prompt: Vec<u32>,
        answer: usize,
        priority: i32,
        arrives: usize,
        leaves: Option<usize>,
        pauses: Option<(usize, usize)>,
        /// The lengths of its drafts, one after the other.
        drafts: Vec<usize>,
    }

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        // Few different tokens make many common prefixes.
        let prompt = prop::collection::vec(0u32..2, 1..20);
        let pauses = prop::option::of((0usize..40, 1usize..20));
        let drafts = prop::collection::vec(0usize..10, 1..4);
        let leaves = prop::option::weighted(0.2, 0usize..40);
        let request = (prompt, 1usize..12, -1i32..2, 0usize..30, leaves, pauses, drafts);
        let request = request.prop_map(|(prompt, answer, priority, arrives, leaves, pauses, drafts)| Request {
            prompt,
            answer,
            priority,
            arrives,
            leaves,
            pauses,
            drafts,
        });
        prop::collection::vec(request, 1..16)
    }

    proptest! {
        /// Random arrivals, lengths, priorities, pauses, drafts and departures, in caches that hold little more
        /// than one sequence: every answer is the one that the sequence would get alone.
        #[test]
        fn answers_do_not_depend_on_what_else_runs(
            requests in requests(),
            cache_blocks in 8usize..20,
            max_running in 1usize..8,
            max_batched_tokens in 1usize..30,
            pace in 1usize..6,
        ) {
            let mut s = scheduler(max_running, max_batched_tokens, cache_blocks);
            let mut decoder = FakeDecoder(vec![u32::MAX; cache_blocks * BLOCK]);
            let mut answers: Vec<Option<Vec<u32>>> = vec![None; requests.len()];
            for time in 0..3000 {
                for (id, request) in requests.iter().enumerate() {
                    let sequence = id as SequenceId;
                    if request.arrives == time {
                        let (tokens, priority) = (request.prompt.clone(), request.priority);
                        s.add(sequence, Arrival { tokens, priority, ..Arrival::default() });
                        answers[id] = Some(Vec::new());
                    }
                    if request.leaves == Some(time) {
                        s.remove(sequence);
                    }
                    let (from, len) = request.pauses.unwrap_or_default();
                    s.set_paused(sequence, (from..from + len).contains(&time));
                }
                let chunks = s.schedule(|_| pace);
                for chunk in &chunks {
                    decoder.compute(chunk, s.tokens(chunk));
                }
                let streams = chunks.iter().filter(|chunk| chunk.len == 1 && chunk.samples).count();
                let rows: usize = chunks.iter().map(|chunk| chunk.len + chunk.draft.len()).sum();
                prop_assert!(rows <= streams + max_batched_tokens);
                for chunk in &chunks {
                    let request = &requests[chunk.id as usize];
                    let answer = answers[chunk.id as usize].as_mut().unwrap();
                    let left = request.answer - answer.len();
                    let sampled = if chunk.samples { decoder.sample(chunk, left) } else { Vec::new() };
                    s.computed(chunk, &sampled);
                    answer.extend(sampled);
                    if answer.len() == request.answer {
                        s.remove(chunk.id);
                    }
                    if chunk.samples {
                        let len = request.drafts[answer.len() % request.drafts.len()].min(request.answer - answer.len());
                        // Of what may come, the first tokens are often right.
                        let mut known: Vec<u32> = request.prompt.iter().chain(&*answer).copied().collect();
                        (0..len).for_each(|i| known.push((FakeDecoder::next(known.iter().copied()) + u32::from(i > 2)) % 3));
                        s.set_draft(chunk.id, known.split_off(known.len() - len));
                    }
                }
                prop_assert!(s.running() <= max_running);
            }
            for (request, answer) in requests.iter().zip(answers) {
                let answer = answer.unwrap();
                let mut alone = request.prompt.clone();
                for _ in 0..request.answer {
                    alone.push(FakeDecoder::next(alone.iter().copied()));
                }
                let alone = &alone[request.prompt.len()..];
                prop_assert_eq!(&answer, &alone[..answer.len()]);
                let left = request.leaves.is_some_and(|leaves| leaves >= request.arrives);
                prop_assert!(left || answer.len() == request.answer, "{:?} ended early", request);
            }
            prop_assert_eq!((s.used_blocks(), s.running()), (0, 0));
        }
    }
}
