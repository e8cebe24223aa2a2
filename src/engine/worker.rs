use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use tokio::sync::{Notify, mpsc};

use super::{
    EngineOptions,
    admission::AdmissionQueue,
    blocks::CacheNamespace,
    compute_lock::ComputeLock,
    prefill_budget::PrefillBudget,
    request_context::{self, End},
    sampler::Sampler,
    scheduler::{Arrival, Chunk, Scheduler, SequenceId},
    sequence::{Memory, Sequence, StepOutcome},
    state::ModelState,
    tokenize_queue::TokenizedRequest,
};
use crate::{
    Error, Result,
    decoder::{Batch, Forward, Span},
    kernels::threads::{ThreadPool, parallel},
    text::TextProcessor,
};

/// How long a request waits for those that have come with it. Without them a pass would begin at once, and they would
/// have to share the next ones with its stream.
const MAX_GATHERING: Duration = Duration::from_millis(5);

/// What reaches the worker from outside.
pub struct Inbox {
    pub jobs: mpsc::Receiver<TokenizedRequest>,
    /// Rung when a reader has made room.
    pub wake: Arc<Notify>,
    /// Shared with whoever else computes with the model.
    pub compute_lock: Arc<ComputeLock>,
    /// Told how many requests could run.
    pub queue: Arc<AdmissionQueue>,
}

/// What owns a model's decoder, on one of the model's threads. Its loop is four moves: schedule, run, sample, deliver.
pub struct Worker {
    decoder: Box<dyn Forward>,
    /// What passes are computed by.
    pool: ThreadPool,
    text: Arc<TextProcessor>,
    options: EngineOptions,
    inbox: Inbox,
    state: Arc<ModelState>,
    scheduler: Scheduler,
    prefill_budget: PrefillBudget,
    sequences: BTreeMap<SequenceId, Sequence>,
    peak_memory: usize,
}

impl Worker {
    pub fn new(
        (decoder, pool): (Box<dyn Forward>, ThreadPool),
        text: Arc<TextProcessor>,
        options: EngineOptions,
        inbox: Inbox,
        state: Arc<ModelState>,
    ) -> Self {
        let scheduler = Scheduler::new(options.limits.clone());
        let peak_memory = options.weight_bytes;
        let (prefill_budget, sequences) = Default::default();
        let worker =
            Self { decoder, pool, text, options, inbox, state, scheduler, prefill_budget, sequences, peak_memory };
        worker.report();
        worker
    }

    /// Runs until the model closes.
    pub fn run(mut self) {
        // Whatever happens here, nobody waits for it for ever.
        let closed = self.state.closed.clone().drop_guard();
        let _alive = self.state.alive("worker");
        while !self.state.closing.is_cancelled() {
            self.intake();
            let chunks = self.scheduler.schedule(|streams| self.prefill_budget.prompt_tokens(streams));
            if chunks.is_empty() {
                self.note_capacity();
                self.report();
                self.sleep();
            } else if let Err(error) = self.pass(&chunks) {
                tracing::error!(%error, "a forward pass failed");
                for chunk in &chunks {
                    self.scheduler.failed(chunk);
                    self.end(chunk.id, error.clone().into());
                }
            }
        }
        for id in self.sequences.keys().copied().collect::<Vec<_>>() {
            self.end(id, self.state.closed_error().into());
        }
        self.inbox.jobs.close();
        while let Ok(prepared) = self.inbox.jobs.try_recv() {
            prepared.request.context.fail(self.state.closed_error());
        }
        drop(self);
        drop(closed);
    }

    /// Takes what has come, and lets go of what nobody waits for any more.
    fn intake(&mut self) {
        while let Ok(prepared) = self.inbox.jobs.try_recv() {
            self.add(prepared);
        }
        if self.scheduler.running() == 0 && !self.sequences.is_empty() {
            self.gather();
        }
        let now = Instant::now();
        let mut expired = Vec::new();
        for (id, sequence) in &self.sequences {
            match sequence.context.expired(now) {
                Some(error) => expired.push((*id, error)),
                None => self.scheduler.set_paused(*id, !sequence.context.sender.has_room()),
            }
        }
        for (id, error) in expired {
            self.end(id, error.into());
        }
    }

    fn add(&mut self, prepared: TokenizedRequest) {
        let TokenizedRequest { id, mut request, tokens } = prepared;
        let salt = request.config.cache_salt.take().map(Arc::from);
        let adapter = request.adapter.as_ref().map(|loaded| loaded.id);
        let namespace =
            CacheNamespace { salt, rope_variant: self.decoder.rope_variant(tokens.len(), tokens.len()), adapter };
        let priority = request.config.priority;
        let entropy = RandomState::new().hash_one(id);
        let sampler = Sampler::new(&request.config, &tokens, &self.text.end_ids, entropy, self.options.isa);
        let sequence = Sequence::new(request, &tokens, self.text.clone(), self.options.context_len, sampler);
        let scored = sequence.is_scored();
        self.scheduler.add(id, Arrival { tokens, priority, namespace, scored });
        self.sequences.insert(id, sequence);
    }

    /// Waits for a request, a reader that makes room, a cancellation, a deadline, or the end.
    fn sleep(&mut self) {
        let contexts = || self.sequences.values().map(|sequence| &sequence.context);
        let mut cancellations: FuturesUnordered<_> =
            contexts().map(|context| context.sender.cancellation().cancelled()).collect();
        let deadline = contexts().filter_map(|context| context.deadline).min();
        let prepared = block_on(async {
            tokio::select! {
                () = self.state.closing.cancelled() => None,
                () = self.inbox.wake.notified() => None,
                Some(()) = cancellations.next() => None,
                () = request_context::reached(deadline) => None,
                prepared = self.inbox.jobs.recv() => match prepared {
                    Some(prepared) => Some(prepared),
                    // The front is gone; only the end is left to wait for.
                    None => { self.state.closing.cancelled().await; None }
                },
            }
        });
        drop(cancellations);
        if let Some(prepared) = prepared {
            self.add(prepared);
        }
    }

    /// Takes requests that have come with the first ones, as soon as their prompts are tokens, so that they share
    /// passes.
    fn gather(&mut self) {
        let until = Instant::now() + MAX_GATHERING;
        while self.state.in_flight() > self.sequences.len() {
            let next = block_on(async {
                tokio::select! {
                    biased;
                    prepared = self.inbox.jobs.recv() => prepared,
                    () = request_context::reached(Some(until)) => None,
                }
            });
            let Some(prepared) = next else { return };
            self.add(prepared);
        }
    }

    /// One forward pass over all chunks, and what follows from its logits.
    fn pass(&mut self, chunks: &[Chunk]) -> Result<()> {
        self.start(chunks);
        let batch = self.pack(chunks);
        let memory = self.memory();
        let Self { decoder, pool, inbox, sequences, prefill_budget, state, .. } = self;
        let run = || {
            pool.scope(|| {
                let guard = inbox.compute_lock.lock_for_pass();
                let begun = Instant::now();
                let logits = decoder.forward(&batch)?;
                let took = begun.elapsed();
                drop(guard);
                note_pass(chunks, took, prefill_budget, state);
                advance(sequences, chunks, &logits, memory)
            })
        };
        let ran = catch_unwind(AssertUnwindSafe(run));
        let steps = ran.unwrap_or_else(|panic| Err(Error::panicked("the model's worker", panic.as_ref())))?;
        for chunk in chunks.iter().filter(|chunk| !chunk.samples) {
            self.scheduler.computed(chunk, &[]);
        }
        let price = self.prefill_budget.draft_price(steps.len());
        for (chunk, step) in steps {
            match chunk.samples {
                true => self.append(chunk, step, price),
                // There is more of a prompt that is scored.
                false => step.end.into_iter().for_each(|end| self.end(chunk.id, end)),
            }
        }
        Ok(())
    }

    /// Adds what was sampled after a chunk to its sequence and guesses what follows, or ends it.
    fn append(&mut self, chunk: &Chunk, step: StepOutcome, price: f64) {
        let StepOutcome { tokens, end } = step;
        self.scheduler.computed(chunk, &tokens);
        if let Some(end) = end {
            return self.end(chunk.id, end);
        }
        if let Some(sequence) = self.sequences.get_mut(&chunk.id) {
            let mut draft = sequence.guess(price);
            let len = chunk.start + chunk.len + tokens.len();
            let rope_variant = |len| self.decoder.rope_variant(sequence.prompt_len(), len);
            self.scheduler.set_rope_variant(chunk.id, rope_variant(len));
            // A chunk is computed with one rope variant.
            draft.truncate((1..=draft.len()).take_while(|more| rope_variant(len + more) == rope_variant(len)).count());
            self.scheduler.set_draft(chunk.id, draft);
        }
    }

    /// Tells the sequences that this is their turn.
    fn start(&mut self, chunks: &[Chunk]) {
        let (mut prompt_tokens, mut cached) = (0, 0);
        for chunk in chunks {
            if let Some(sequence) = self.sequences.get_mut(&chunk.id)
                && sequence.start(chunk.start)
            {
                prompt_tokens += sequence.prompt_len();
                cached += chunk.start;
            }
        }
        self.note_capacity();
        self.state.update(|stats| {
            stats.prompt_tokens += prompt_tokens as u64;
            stats.cached_prompt_tokens += cached as u64;
        });
        self.report();
    }

    fn pack(&self, chunks: &[Chunk]) -> Batch {
        let mut batch = Batch::default();
        for chunk in chunks {
            let len = chunk.len + chunk.draft.len();
            let (start, end) = (chunk.start, chunk.start + len);
            let sequence = self.sequences.get(&chunk.id);
            batch.spans.push(Span {
                sequence: chunk.id,
                prompt_len: sequence.map_or(0, Sequence::prompt_len),
                start: batch.tokens.len(),
                len,
                context_len: end,
                rope_variant: chunk.rope_variant,
                blocks: chunk.blocks.clone(),
                adapter: sequence.and_then(Sequence::adapter),
            });
            batch.tokens.extend(self.scheduler.tokens(chunk).iter().chain(&chunk.draft));
            batch.positions.extend(start as u32..end as u32);
            let rows = batch.tokens.len();
            batch.sampled.extend((rows - sampled_rows(chunk)) as u32..rows as u32);
        }
        batch
    }

    /// Ends a sequence and frees what it holds.
    fn end(&mut self, id: SequenceId, end: End) {
        let memory = self.memory();
        self.scheduler.remove(id);
        self.decoder.forget(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            // Whoever learns of the end finds its memory and its slot free.
            self.note_capacity();
            self.report();
            let metrics = sequence.metrics(memory);
            sequence.context.end(end, metrics);
        }
    }

    /// Tells the queue how many sequences have begun or could begin at once.
    fn note_capacity(&self) {
        let begun = self.sequences.values().filter(|sequence| sequence.has_started()).count();
        self.inbox.queue.set_capacity(begun + self.scheduler.idle_slots());
    }

    /// Publishes what the scheduler holds.
    fn report(&self) {
        let EngineOptions { block_bytes, limits, .. } = &self.options;
        self.state.update(|stats| {
            stats.running = self.scheduler.running();
            stats.preemptions = self.scheduler.preemptions();
            stats.weight_bytes = self.options.weight_bytes;
            stats.kv_capacity_bytes = limits.cache_blocks * block_bytes;
            stats.kv_capacity_tokens = limits.cache_blocks * limits.block_tokens;
            stats.kv_used_bytes = self.scheduler.used_blocks() * block_bytes;
            stats.kv_cached_bytes = self.scheduler.idle_blocks() * block_bytes;
        });
    }

    fn memory(&mut self) -> Memory {
        let active = self.options.weight_bytes + self.scheduler.used_blocks() * self.options.block_bytes;
        self.peak_memory = self.peak_memory.max(active);
        Memory { active, peak: self.peak_memory }
    }
}

/// Learns from a pass and counts it, before anybody can have seen its tokens.
fn note_pass(chunks: &[Chunk], took: Duration, prefill_budget: &mut PrefillBudget, state: &ModelState) {
    let drafted: usize = chunks.iter().map(|chunk| chunk.draft.len()).sum();
    let rows = chunks.iter().map(|chunk| chunk.len).sum::<usize>() + drafted;
    let streams = chunks.iter().filter(|chunk| chunk.len == 1 && chunk.samples).count();
    let sampled = chunks.iter().filter(|chunk| chunk.samples && !chunk.scored).count();
    match rows - streams - drafted {
        prompts if drafted == 0 => prefill_budget.note(streams, prompts, took),
        0 => prefill_budget.note_drafts(streams, drafted, took),
        // Whose time it was is unknown.
        _ => {}
    }
    tracing::trace!(rows, streams, sampled, drafted, took_us = took.as_micros() as u64, "pass");
    state.update(|stats| {
        stats.passes += 1;
        stats.pass_duration += took;
        stats.batched_tokens += rows as u64;
        stats.sampled_tokens += sampled as u64;
        stats.drafted_tokens += drafted as u64;
    });
}

/// Rows of a chunk whose logits are wanted: that of its last token and those of its draft, or all.
fn sampled_rows(chunk: &Chunk) -> usize {
    match (chunk.scored, chunk.samples) {
        (true, _) => chunk.len,
        (false, true) => 1 + chunk.draft.len(),
        (false, false) => 0,
    }
}

/// Does what follows from the logits, `[sampled rows, vocab_size]`, for each sequence that samples. They share
/// nothing, so it is done for several at a time.
fn advance<'a>(
    sequences: &mut BTreeMap<SequenceId, Sequence>,
    chunks: &'a [Chunk],
    mut logits: &[f32],
    memory: Memory,
) -> Result<Vec<(&'a Chunk, StepOutcome)>> {
    let rows = chunks.iter().map(sampled_rows).sum();
    if rows == 0 {
        return Ok(Vec::new());
    }
    if logits.is_empty() || !logits.len().is_multiple_of(rows) {
        return Err(Error::internal(format!("a forward pass gave {} logits for {rows} rows", logits.len())));
    }
    let vocab_size = logits.len() / rows;
    let mut sequences: BTreeMap<_, _> = sequences.iter_mut().collect();
    let mut advancing = Vec::with_capacity(chunks.len());
    for chunk in chunks.iter().filter(|chunk| sampled_rows(chunk) > 0) {
        let own = logits.split_off(..sampled_rows(chunk) * vocab_size).unwrap_or_default();
        advancing.extend(sequences.remove(&chunk.id).map(|sequence| (chunk, sequence, own, None)));
    }
    parallel::for_each_mut(&mut advancing, |_, (chunk, sequence, logits, step)| {
        *step = Some(sequence.advance(chunk, logits, memory));
    });
    Ok(advancing.into_iter().filter_map(|(chunk, _, _, step)| Some((chunk, step?))).collect())
}
