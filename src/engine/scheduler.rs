//! The scheduler: continuous batching, chunked prefill, preemption.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::blocks::{BlockPool, BlockTable, CacheNamespace};
use crate::decoder::SpanStates;

/// Identifies a sequence; later sequences have greater ids.
pub type SequenceId = u64;

/// Output rows of sequences that want all of theirs, in a pass. Logits take `vocab_size` elements a row.
const MAX_OUTPUT_ROWS: usize = 64;

/// How often sequences of higher priority pass the one that has waited longest.
const MAX_OVERTAKEN: usize = 64;

/// The limits of a pass and of the cache.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sequences that run at the same time.
    pub max_running: usize,
    /// Tokens of prompts in one forward pass.
    pub max_batched_tokens: usize,
    /// Blocks in the key/value cache.
    pub cache_blocks: usize,
    /// Slots for recurrent states; 0 if the model has none.
    pub state_slots: usize,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Blocks kept for later requests while no sequence holds them.
    pub max_idle_blocks: usize,
}

impl Limits {
    /// Sequences that could run at the same time if they were short.
    pub fn slots(&self) -> usize {
        let states = if self.state_slots == 0 { usize::MAX } else { self.state_slots };
        self.max_running.min(self.cache_blocks).min(states)
    }
}

/// Decides which tokens of which sequences the next pass computes: continuous batching with chunked prefill, preemption
/// and prefix caching. It knows tokens and blocks, and neither tensors nor time.
///
/// A sequence is computed up to its last token; then a new token is sampled. So prefill and decode differ only in how
/// many tokens are left, and a preempted sequence has no token computed.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    sequences: BTreeMap<SequenceId, ScheduledSequence>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// The sequence that has waited longest, and how many later ones were admitted before it.
    overtaken: (SequenceId, usize),
    preemptions: u64,
}

/// The order in which sequences are served: by priority, then by arrival.
type Rank = (Reverse<i32>, SequenceId);

/// The decoding streams in a pass that a prompt is to share.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLoad {
    pub count: usize,
    /// Whether all of them have begun since the prompt arrived.
    pub newer: bool,
}

#[derive(Debug)]
struct ScheduledSequence {
    tokens: Vec<u32>,
    computed: usize,
    /// Sequences from this id on arrived after its first token was sampled.
    began_before: Option<SequenceId>,
    /// Tokens that may come next.
    draft: Vec<u32>,
    table: BlockTable,
    /// Tokens of the prompt.
    prompt_len: usize,
    /// Tokens shared with a cached sequence, up to where the prompts branch.
    branch: usize,
    rank: Rank,
    paused: bool,
    all_rows: bool,
}

/// Prompt and draft tokens that a pass may have.
struct TokenBudget {
    /// Sequences from this id on arrived after a stream of the pass had begun.
    began_before: Option<SequenceId>,
    /// The budget of sequences that arrived before all streams had begun.
    with_newer: usize,
    with_older: usize,
}

impl TokenBudget {
    /// The budget up to the tokens of a sequence.
    fn of(&self, id: SequenceId) -> usize {
        match self.began_before {
            Some(began_before) if id < began_before => self.with_newer,
            _ => self.with_older,
        }
    }
}

impl ScheduledSequence {
    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }
}

/// A new sequence.
#[derive(Debug, Default)]
pub struct Arrival {
    pub tokens: Vec<u32>,
    /// Sequences of greater priority are served first.
    pub priority: i32,
    /// Cached prefixes are shared within a namespace only.
    pub namespace: CacheNamespace,
    /// Whether the outputs after all of its tokens are wanted, which the prefix cache cannot give.
    pub all_rows: bool,
}

/// Tokens of one sequence for the next pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub id: SequenceId,
    pub start: usize,
    pub len: usize,
    /// Whether these are the last tokens, so that the next one is sampled.
    pub samples: bool,
    /// Draft tokens that may follow. Each accepted one saves a pass.
    pub draft: Vec<u32>,
    /// Whether the outputs after all of these tokens are wanted.
    pub all_rows: bool,
    /// How its positions are encoded.
    pub rope_variant: usize,
    pub blocks: Vec<u32>,
    /// Slots of the recurrent state; none in a model without recurrent layers.
    pub states: SpanStates,
}

impl Chunk {
    /// The number of rows with outputs: all rows, or the last token and the draft, or none. They are the last rows of
    /// the chunk.
    pub fn output_rows(&self) -> usize {
        match (self.all_rows, self.samples) {
            (true, _) => self.len,
            (false, true) => 1 + self.draft.len(),
            (false, false) => 0,
        }
    }
}

/// The outcome of a chunk after its pass.
#[derive(Debug)]
pub struct ChunkOutcome {
    pub chunk: Chunk,
    /// The sampled tokens: the accepted ones of the draft, and one more.
    pub sampled: Vec<u32>,
    pub next: NextStep,
}

/// The next step of a sequence after a pass.
#[derive(Debug)]
pub enum NextStep {
    /// There is more of it to compute.
    Continue,
    /// It is computed up to its last token, with this rope variant from now on. A draft may follow the token.
    Decode { rope_variant: usize, draft: Vec<u32> },
    /// It has ended.
    End,
    /// The pass has failed, so that nothing of the chunk is in the cache, and the sequence ends.
    Fail,
}

impl Scheduler {
    pub fn new(limits: Limits) -> Self {
        Self {
            pool: BlockPool::new(limits.cache_blocks, limits.block_tokens, limits.max_idle_blocks, limits.state_slots),
            limits,
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            overtaken: (0, 0),
            preemptions: 0,
        }
    }

    /// Adds a waiting sequence.
    pub fn add(&mut self, id: SequenceId, arrival: Arrival) {
        let Arrival { tokens, priority, namespace, all_rows } = arrival;
        let rank = (Reverse(priority), id);
        self.waiting.insert(rank);
        let progress = ScheduledSequence {
            prompt_len: tokens.len(),
            branch: 0,
            tokens,
            computed: 0,
            began_before: None,
            draft: Vec::new(),
            table: BlockTable::new(namespace),
            rank,
            paused: false,
            all_rows,
        };
        self.sequences.insert(id, progress);
    }

    /// Removes a sequence and frees its blocks.
    pub fn remove(&mut self, id: SequenceId) {
        if let Some(mut progress) = self.sequences.remove(&id) {
            self.pool.release(&mut progress.table);
            self.waiting.remove(&progress.rank);
            self.running.remove(&progress.rank);
        }
    }

    /// Pauses a sequence, or lets it go on. A paused sequence is not computed, and is preempted first.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.paused = paused;
        }
    }

    /// Takes the outcomes of a pass.
    pub fn apply(&mut self, outcomes: Vec<ChunkOutcome>) {
        for ChunkOutcome { chunk, sampled, next } in outcomes {
            if let NextStep::Fail = next {
                self.failed(&chunk);
            } else {
                self.computed(&chunk, &sampled);
            }
            match next {
                NextStep::Continue => {}
                NextStep::Decode { rope_variant, draft } => {
                    self.set_rope_variant(chunk.id, rope_variant);
                    self.set_draft(chunk.id, draft);
                }
                NextStep::End | NextStep::Fail => self.remove(chunk.id),
            }
        }
    }

    /// Notes that a chunk has been computed, and the tokens sampled after it: the accepted ones of its draft, and one
    /// more.
    fn computed(&mut self, chunk: &Chunk, sampled: &[u32]) {
        let next = self.sequences.last_key_value().map_or(0, |(last, _)| last + 1);
        let mut states = chunk.states.clone();
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            let right = chunk.start + chunk.len + sampled.len().saturating_sub(1);
            // Accepted tokens after the last saved state are computed again.
            progress.computed = self.pool.adopt(&mut progress.table, &mut states, right);
            progress.tokens.extend(sampled);
            if !sampled.is_empty() {
                progress.began_before.get_or_insert(next);
            }
            progress.draft.clear();
            self.pool.publish(&mut progress.table, &progress.tokens[..progress.computed]);
            self.pool.keep_snapshots(&mut progress.table, states, progress.prompt_len);
            self.pool.shrink(&mut progress.table, progress.computed);
        } else {
            self.pool.discard(states);
        }
    }

    /// Sets the draft for the next chunk.
    fn set_draft(&mut self, id: SequenceId, draft: Vec<u32>) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.draft = draft;
        }
    }

    /// Sets the rope variant of a sequence. A new variant makes it recompute all tokens.
    fn set_rope_variant(&mut self, id: SequenceId, rope_variant: usize) {
        if let Some(progress) =
            self.sequences.get_mut(&id).filter(|progress| progress.table.rope_variant() != rope_variant)
        {
            self.pool.enter(&mut progress.table, rope_variant);
            progress.computed = 0;
        }
    }

    /// Notes that a chunk was not computed after all. Its sequence must be removed.
    fn failed(&mut self, chunk: &Chunk) {
        self.pool.discard(chunk.states.clone());
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            self.pool.retract(&mut progress.table, chunk.start / self.limits.block_tokens);
        }
    }

    /// The tokens of a chunk, without its draft.
    pub fn tokens(&self, chunk: &Chunk) -> &[u32] {
        self.sequences.get(&chunk.id).map_or(&[], |progress| &progress.tokens[chunk.start..chunk.start + chunk.len])
    }

    /// Sequences that could be admitted at once: 0 if any has to wait.
    pub fn idle_slots(&self) -> usize {
        match self.candidates().next() {
            Some(_) => 0,
            None => self.limits.slots().saturating_sub(self.running.len()).min(self.pool.available()),
        }
    }

    /// Running sequences, with paused ones.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Blocks that sequences hold.
    pub fn used_blocks(&self) -> usize {
        self.pool.used()
    }

    /// Blocks of the prefix cache that no sequence holds.
    pub fn idle_blocks(&self) -> usize {
        self.pool.idle()
    }

    /// State slots of sequences.
    pub fn used_states(&self) -> usize {
        self.pool.used_states()
    }

    /// Snapshots of recurrent states, kept for later requests.
    pub fn idle_states(&self) -> usize {
        self.pool.snapshots()
    }

    /// Preemptions so far.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The chunks of the next pass; none if there is nothing to compute. `prompt_tokens` gives the number of prompt and
    /// draft tokens that may share the pass with decoding streams.
    pub fn schedule(&mut self, prompt_tokens: impl Fn(DecodeLoad) -> usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let ids = |of: fn(&ScheduledSequence) -> bool| -> Vec<SequenceId> {
            self.ready().filter(|progress| of(progress)).map(|progress| progress.rank.1).collect()
        };
        let (decodes, prefills) = (ids(|progress| progress.left() == 1), ids(|progress| progress.left() > 1));
        // All decoding streams go first.
        for id in decodes {
            self.take(id, 1, &mut chunks);
        }
        let (budget, mut taken) = (self.budget(&chunks, prompt_tokens), 0);
        let first = self.next_waiting(false).and_then(|id| self.rank(id));
        let outranked = |id: &SequenceId| first.is_some_and(|first| self.rank(*id).is_some_and(|rank| first < rank));
        let (outranked, others): (Vec<_>, Vec<_>) = prefills.into_iter().partition(outranked);
        for id in others {
            taken += self.take(id, budget.of(id).saturating_sub(taken), &mut chunks);
        }
        taken = self.take_newcomers(&budget, taken, outranked.first().copied(), &mut chunks);
        for id in &outranked {
            let budget = budget.of(*id).saturating_sub(taken);
            // Nobody is preempted who shares blocks with newcomers, unless the pass would be empty.
            taken += match chunks.is_empty() {
                true => self.take(*id, budget, &mut chunks),
                false => self.try_take(*id, budget, &mut chunks).unwrap_or(0),
            };
        }
        if !outranked.is_empty() {
            taken = self.take_newcomers(&budget, taken, None, &mut chunks);
        }
        self.add_drafts(&mut chunks, budget.with_older.saturating_sub(taken));
        // Last, since snapshots use only free slots and the slots of older snapshots.
        chunks.iter_mut().for_each(|chunk| self.add_snapshots(chunk));
        chunks
    }

    /// Admits waiting sequences that rank before `outranked`, and returns the part of the budget that is taken. They
    /// may share blocks that this pass computes, so that no chunk of it may be preempted any more.
    fn take_newcomers(
        &mut self,
        budget: &TokenBudget,
        mut taken: usize,
        outranked: Option<SequenceId>,
        chunks: &mut Vec<Chunk>,
    ) -> usize {
        let before = outranked.and_then(|id| self.rank(id));
        chunks.iter().for_each(|chunk| self.publish(chunk));
        while let Some(id) = self.next_waiting(all_rows_tokens(chunks) >= MAX_OUTPUT_ROWS)
            && before.is_none_or(|before| self.rank(id).is_some_and(|rank| rank < before))
            && budget.of(id) > taken
            && self.admit(id)
        {
            match self.try_take(id, budget.of(id) - taken, chunks) {
                Some(len) if len > 0 => taken += len,
                _ => break,
            }
            if let Some(chunk) = chunks.last() {
                self.publish(chunk);
            }
        }
        taken
    }

    /// The budget of a pass with these decoding streams.
    fn budget(&self, streams: &[Chunk], prompt_tokens: impl Fn(DecodeLoad) -> usize) -> TokenBudget {
        let (count, most) = (streams.len(), self.limits.max_batched_tokens);
        let paced = |newer| if count == 0 { most } else { most.min(prompt_tokens(DecodeLoad { count, newer })) };
        let began_before = streams.iter().filter_map(|chunk| self.sequences.get(&chunk.id)?.began_before).min();
        TokenBudget { began_before, with_newer: paced(true), with_older: paced(false) }
    }

    /// Adds drafts to their chunks, in equal parts of the rest of the budget.
    fn add_drafts(&mut self, chunks: &mut [Chunk], mut budget: usize) {
        let drafted = |chunk: &Chunk| self.sequences.get(&chunk.id).is_some_and(|progress| !progress.draft.is_empty());
        let drafting: Vec<_> = chunks.iter_mut().filter(|chunk| chunk.samples && drafted(chunk)).collect();
        let count = drafting.len();
        for (before, chunk) in drafting.into_iter().enumerate() {
            self.add_draft(chunk, budget.div_ceil(count - before));
            budget -= chunk.draft.len();
        }
    }

    /// Adds at most `len` tokens of a draft. Nobody is preempted for it.
    fn add_draft(&mut self, chunk: &mut Chunk, len: usize) {
        let Some(progress) = self.sequences.get_mut(&chunk.id) else { return };
        let end = chunk.start + chunk.len;
        let blocks = progress.table.blocks.len() + self.pool.available();
        let mut draft = std::mem::take(&mut progress.draft);
        draft.truncate(len.min(blocks * self.limits.block_tokens - end));
        if self.pool.grow(&mut progress.table, end + draft.len())
            && self.pool.save_before_draft(&mut chunk.states, draft.len())
        {
            chunk.blocks.clone_from(&progress.table.blocks);
            chunk.draft = draft;
        }
    }

    /// Saves the recurrent states that later sequences are likely to begin with, at ends of blocks: the last one in a
    /// prompt, the one where prompts branch, the last one in an answer ([Marconi](https://arxiv.org/abs/2411.19379)).
    fn add_snapshots(&mut self, chunk: &mut Chunk) {
        let Some(progress) = self.sequences.get(&chunk.id).filter(|_| self.limits.state_slots > 0) else { return };
        let block = self.limits.block_tokens;
        let end = chunk.start + chunk.len;
        let of_prompt = (progress.tokens.len() - 1) / block * block;
        let of_answer = if end >= progress.prompt_len { end / block * block } else { 0 };
        let mut borders = [progress.branch, of_prompt, of_answer];
        borders.sort_unstable();
        for (i, border) in borders.into_iter().enumerate() {
            if chunk.start < border && border <= end && !borders[..i].contains(&border) {
                self.pool.save_snapshot(&progress.table, &mut chunk.states, border);
            }
        }
    }

    /// Running sequences that are not paused, by rank.
    fn ready(&self) -> impl Iterator<Item = &ScheduledSequence> {
        self.running.iter().filter_map(|(_, id)| self.sequences.get(id)).filter(|progress| !progress.paused)
    }

    /// Schedules at most `budget` tokens of a running sequence and returns their number. If blocks run out, others are
    /// preempted, or the sequence itself.
    fn take(&mut self, id: SequenceId, budget: usize, chunks: &mut Vec<Chunk>) -> usize {
        loop {
            if let Some(len) = self.try_take(id, budget, chunks) {
                return len;
            }
            let Some(victim) = self.victim() else { return 0 };
            chunks.retain(|chunk| chunk.id != victim);
            self.preempt(victim);
        }
    }

    /// As `take`, but nobody is preempted: `None` if blocks run out.
    fn try_take(&mut self, id: SequenceId, budget: usize, chunks: &mut Vec<Chunk>) -> Option<usize> {
        let Some(progress) = self.sequences.get_mut(&id) else { return Some(0) };
        let (start, left) = (progress.computed, progress.left());
        let mut len = left.min(budget);
        if progress.all_rows {
            len = len.min(MAX_OUTPUT_ROWS.saturating_sub(all_rows_tokens(chunks)));
        }
        if self.limits.state_slots > 0 && len < left {
            // Cut at the end of a block if there is one: a recurrence may compute whole blocks faster.
            let end = (start + len) / self.limits.block_tokens * self.limits.block_tokens;
            len = if end > start { end - start } else { len };
        }
        // It may have been preempted in this very pass.
        if len == 0 || !self.running.contains(&progress.rank) {
            return Some(0);
        }
        if !self.pool.grow(&mut progress.table, start + len) {
            return None;
        }
        let (rope_variant, blocks) = (progress.table.rope_variant(), progress.table.blocks.clone());
        let states = progress.table.states(start, start + len);
        let (samples, all_rows, draft) = (len == left, progress.all_rows, Vec::new());
        chunks.push(Chunk { id, start, len, samples, draft, all_rows, rope_variant, blocks, states });
        Some(len)
    }

    /// The sequence to preempt next: a paused one, else the last in rank.
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

    /// Publishes the blocks that a chunk fills in the prefix cache.
    fn publish(&mut self, chunk: &Chunk) {
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            self.pool.publish(&mut progress.table, &progress.tokens[..chunk.start + chunk.len]);
        }
    }

    /// Admits a waiting sequence, with its cached prefix, if the cache can hold all its tokens. Paused sequences are
    /// preempted for it: a reader that does not read holds up nobody.
    fn admit(&mut self, id: SequenceId) -> bool {
        while let Some(progress) = self.sequences.get(&id) {
            // At least the last token is computed, since its output is wanted.
            let known = if progress.all_rows { 0 } else { progress.tokens.len() - 1 };
            let hit = self.pool.find(&progress.table, &progress.tokens[..known]);
            let taken = self.pool.needed(progress.tokens.len()) - hit.blocks.len() + hit.idle;
            // A block for each that runs, lest the newcomer has to give way at once.
            let spare = self.ready().count();
            if self.running.len() < self.limits.max_running
                && taken + spare <= self.pool.available()
                && self.pool.has_state()
            {
                self.note_overtaking(id);
                let Some(progress) = self.sequences.get_mut(&id) else { return false };
                let [computed, branch] =
                    [hit.blocks.len(), hit.matched].map(|blocks| blocks * self.limits.block_tokens);
                if !self.pool.share(&mut progress.table, hit) {
                    return false;
                }
                (progress.computed, progress.branch) = (computed, branch);
                self.waiting.remove(&progress.rank);
                self.running.insert(progress.rank);
                return true;
            }
            let Some((_, paused)) = self.running.iter().rev().find(|(_, id)| self.is_paused(*id)) else { return false };
            self.preempt(*paused);
        }
        false
    }

    fn rank(&self, id: SequenceId) -> Option<Rank> {
        self.sequences.get(&id).map(|progress| progress.rank)
    }

    /// The first in rank, unless the one that has waited longest has been overtaken too often; `last_row_only` leaves
    /// out sequences that want all output rows.
    fn next_waiting(&self, last_row_only: bool) -> Option<SequenceId> {
        let all_rows = |id: &SequenceId| self.sequences.get(id).is_some_and(|progress| progress.all_rows);
        let candidates = || self.candidates().filter(|id| !(last_row_only && all_rows(id)));
        let oldest = candidates().min()?;
        match self.overtaken {
            (id, times) if id == oldest && times >= MAX_OVERTAKEN => Some(oldest),
            _ => candidates().next(),
        }
    }

    /// Waiting sequences that are not paused, by rank.
    fn candidates(&self) -> impl Iterator<Item = SequenceId> {
        self.waiting.iter().map(|(_, id)| *id).filter(|id| !self.is_paused(*id))
    }

    fn note_overtaking(&mut self, admitted: SequenceId) {
        let Some(oldest) = self.candidates().min().filter(|oldest| *oldest != admitted) else { return };
        let count = if self.overtaken.0 == oldest { self.overtaken.1 } else { 0 };
        self.overtaken = (oldest, count + 1);
    }
}

/// Output rows of sequences that want all of theirs.
fn all_rows_tokens(chunks: &[Chunk]) -> usize {
    chunks.iter().filter(|chunk| chunk.all_rows).map(|chunk| chunk.len).sum()
}

#[cfg(test)]
mod tests;
