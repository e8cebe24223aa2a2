use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::blocks::{BlockPool, BlockTable, CacheNamespace};

/// Names a sequence in the scheduler; later ones are greater.
pub type SequenceId = u64;

/// Output rows of sequences that want all of theirs, in a pass. Logits take `vocab_size` elements a row.
const MAX_OUTPUT_ROWS: usize = 64;

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

impl Limits {
    /// Sequences that could run at the same time if they were short.
    pub fn slots(&self) -> usize {
        self.max_running.min(self.cache_blocks)
    }
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
    sequences: BTreeMap<SequenceId, ScheduledSequence>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// The sequence that waits for longest, and how many came before it that arrived later.
    overtaken: (SequenceId, usize),
    preemptions: u64,
}

/// The order in which sequences are served: by priority, and among equals as they came.
type Rank = (Reverse<i32>, SequenceId);

/// The streams that a prompt shares a pass with.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLoad {
    pub count: usize,
    /// Whether all have begun since the prompt came.
    pub newer: bool,
}

#[derive(Debug)]
struct ScheduledSequence {
    tokens: Vec<u32>,
    computed: usize,
    /// Sequences from this one on came after its first token was sampled.
    began_before: Option<SequenceId>,
    /// What may follow the tokens.
    draft: Vec<u32>,
    table: BlockTable,
    rank: Rank,
    paused: bool,
    all_rows: bool,
}

/// Tokens of prompts and drafts that a pass may have.
struct TokenBudget {
    /// Sequences from this one on came after a stream of the pass had begun.
    began_before: Option<SequenceId>,
    /// For those that came before all streams had begun.
    with_newer: usize,
    with_older: usize,
}

impl TokenBudget {
    /// Up to those of a sequence.
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

/// A sequence for the scheduler.
#[derive(Debug, Default)]
pub struct Arrival {
    pub tokens: Vec<u32>,
    /// Greater ones are served first.
    pub priority: i32,
    /// Cached prefixes are shared within the same one only.
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
    /// Whether these are its last tokens, so that the next one is sampled.
    pub samples: bool,
    /// Tokens that may follow them. What is computed and sampled for those that do saves passes.
    pub draft: Vec<u32>,
    /// Whether the outputs after all of these tokens are wanted.
    pub all_rows: bool,
    /// How its positions are encoded.
    pub rope_variant: usize,
    pub blocks: Vec<u32>,
}

impl Chunk {
    /// The rows whose outputs are wanted: all, or those of the last token and of the draft, or none. They are the last
    /// rows of the chunk.
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

/// What becomes of a sequence after a pass.
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
        let Arrival { tokens, priority, namespace, all_rows } = arrival;
        let rank = (Reverse(priority), id);
        self.waiting.insert(rank);
        let progress = ScheduledSequence {
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

    /// Notes that a chunk has been computed, and which tokens were sampled after it: those of its draft that were
    /// right, and one more.
    fn computed(&mut self, chunk: &Chunk, sampled: &[u32]) {
        let next = self.sequences.last_key_value().map_or(0, |(last, _)| last + 1);
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            let right = sampled.len().saturating_sub(1);
            progress.computed = chunk.start + chunk.len + right;
            progress.tokens.extend(sampled);
            if !sampled.is_empty() {
                progress.began_before.get_or_insert(next);
            }
            progress.draft.clear();
            self.pool.publish(&mut progress.table, &progress.tokens[..progress.computed]);
            self.pool.shrink(&mut progress.table, progress.computed);
        }
    }

    /// Notes which tokens may follow those of a sequence, until one is sampled.
    fn set_draft(&mut self, id: SequenceId, draft: Vec<u32>) {
        if let Some(progress) = self.sequences.get_mut(&id) {
            progress.draft = draft;
        }
    }

    /// Notes how the positions of a sequence are encoded from now on. If that is new, it is computed anew.
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
        if let Some(progress) = self.sequences.get_mut(&chunk.id) {
            self.pool.retract(&mut progress.table, chunk.start / self.limits.block_tokens);
        }
    }

    /// The tokens of a chunk, its draft not among them.
    pub fn tokens(&self, chunk: &Chunk) -> &[u32] {
        self.sequences.get(&chunk.id).map_or(&[], |progress| &progress.tokens[chunk.start..chunk.start + chunk.len])
    }

    /// Sequences that could run beside those that do, if none of those that came before them has to wait.
    pub fn idle_slots(&self) -> usize {
        match self.candidates().next() {
            Some(_) => 0,
            None => self.limits.slots().saturating_sub(self.running.len()).min(self.pool.available()),
        }
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

    /// The next pass; empty if there is nothing to compute. `prompt_tokens` says how many tokens of prompts and drafts may
    /// share the pass with streams which wait for their next token.
    pub fn schedule(&mut self, prompt_tokens: impl Fn(DecodeLoad) -> usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let ids = |of: fn(&ScheduledSequence) -> bool| -> Vec<SequenceId> {
            self.ready().filter(|progress| of(progress)).map(|progress| progress.rank.1).collect()
        };
        let (decodes, prefills) = (ids(|progress| progress.left() == 1), ids(|progress| progress.left() > 1));
        // Streams that wait for their next token go first, all of them.
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
            // What newcomers share does not give way. If there is nothing in the pass, somebody has to.
            taken += match chunks.is_empty() {
                true => self.take(*id, budget, &mut chunks),
                false => self.try_take(*id, budget, &mut chunks).unwrap_or(0),
            };
        }
        if !outranked.is_empty() {
            taken = self.take_newcomers(&budget, taken, None, &mut chunks);
        }
        self.add_drafts(&mut chunks, budget.with_older.saturating_sub(taken));
        chunks
    }

    /// Admits sequences, those only that are served before `outranked`, and gives how much of the budget is taken with
    /// them. They share what the pass will compute: nothing of it may give way any more.
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

    /// What may share a pass with the chunks of streams.
    fn budget(&self, streams: &[Chunk], prompt_tokens: impl Fn(DecodeLoad) -> usize) -> TokenBudget {
        let (count, most) = (streams.len(), self.limits.max_batched_tokens);
        let paced = |newer| if count == 0 { most } else { most.min(prompt_tokens(DecodeLoad { count, newer })) };
        let began_before = streams.iter().filter_map(|chunk| self.sequences.get(&chunk.id)?.began_before).min();
        TokenBudget { began_before, with_newer: paced(true), with_older: paced(false) }
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
    fn ready(&self) -> impl Iterator<Item = &ScheduledSequence> {
        self.running.iter().filter_map(|(_, id)| self.sequences.get(id)).filter(|progress| !progress.paused)
    }

    /// Schedules at most `budget` tokens of a running sequence and says how many. If blocks run out,
    /// others give way, or it does.
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

    /// As `take`, but nobody gives way: `None` if blocks run out.
    fn try_take(&mut self, id: SequenceId, budget: usize, chunks: &mut Vec<Chunk>) -> Option<usize> {
        let Some(progress) = self.sequences.get_mut(&id) else { return Some(0) };
        let (start, left) = (progress.computed, progress.left());
        let mut len = left.min(budget);
        if progress.all_rows {
            len = len.min(MAX_OUTPUT_ROWS.saturating_sub(all_rows_tokens(chunks)));
        }
        // Another may have taken its place meanwhile.
        if len == 0 || !self.running.contains(&progress.rank) {
            return Some(0);
        }
        if !self.pool.grow(&mut progress.table, start + len) {
            return None;
        }
        let (rope_variant, blocks) = (progress.table.rope_variant(), progress.table.blocks.clone());
        let (samples, all_rows, draft) = (len == left, progress.all_rows, Vec::new());
        chunks.push(Chunk { id, start, len, samples, draft, all_rows, rope_variant, blocks });
        Some(len)
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

    /// Moves a waiting sequence to the running ones, with what the cache knows of it, if the
    /// cache can hold all its tokens. Paused ones make room for it: a reader that does not read holds
    /// up nobody.
    fn admit(&mut self, id: SequenceId) -> bool {
        while let Some(progress) = self.sequences.get(&id) {
            // The last token is computed in any case: its logits are wanted, or those of all.
            let known = if progress.all_rows { 0 } else { progress.tokens.len() - 1 };
            let hit = self.pool.find(&progress.table, &progress.tokens[..known]);
            let taken = self.pool.needed(progress.tokens.len()) - hit.blocks.len() + hit.idle;
            // A block for each that runs, lest the newcomer has to give way at once.
            let spare = self.ready().count();
            if self.running.len() < self.limits.max_running && taken + spare <= self.pool.available() {
                self.note_overtaking(id);
                let Some(progress) = self.sequences.get_mut(&id) else { return false };
                progress.computed = hit.blocks.len() * self.limits.block_tokens;
                self.pool.share(&mut progress.table, hit);
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

    /// The first in rank, unless the one that waits for longest has been overtaken too often; `last_row_only` leaves
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

/// Output rows of sequences that want all of theirs.
fn all_rows_tokens(chunks: &[Chunk]) -> usize {
    chunks.iter().filter(|chunk| chunk.all_rows).map(|chunk| chunk.len).sum()
}

#[cfg(test)]
mod tests;
