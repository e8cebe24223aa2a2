//! The worker: schedule, run, sample, deliver.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    EngineOptions,
    blocks::CacheNamespace,
    compute_lock::ComputeLock,
    prefill_budget::PrefillBudget,
    scheduler::{Arrival, Chunk, ChunkOutcome, NextStep, Scheduler, SequenceId},
    sequence::{Sequence, SequenceParts},
    tasks::StepResult,
    token_mask::MaskThread,
    tokenizer_thread::TokenizedRequest,
};
use crate::{
    Error, Result,
    decoder::{Batch, Forward, Outputs, Span},
    kernels::threads::{ThreadPool, parallel},
    request::{AdmissionQueue, MemoryUse, ModelState, reached},
    stream::End,
    text::TextProcessor,
};

/// The time that a request waits for others that came with it. Without it their prefills would have to share passes
/// with its stream.
const MAX_GATHERING: Duration = Duration::from_millis(5);

/// The worker's connections to the model's other threads.
pub struct Inbox {
    pub requests: mpsc::Receiver<TokenizedRequest>,
    /// Rung when a reader has made room.
    pub wake: Arc<Notify>,
    /// Shared with background jobs.
    pub compute_lock: Arc<ComputeLock>,
    /// Told how many requests could run.
    pub queue: Arc<AdmissionQueue>,
    pub state: Arc<ModelState>,
    /// Fires when the worker has freed everything.
    pub closed: CancellationToken,
}

/// The owner of a model's decoder, on a thread of its own. Its loop has four moves: schedule, run, sample, deliver.
pub struct Worker {
    decoder: Box<dyn Forward>,
    /// The threads of a forward pass.
    pool: ThreadPool,
    parts: SequenceParts,
    options: EngineOptions,
    inbox: Inbox,
    scheduler: Scheduler,
    prefill_budget: PrefillBudget,
    mask_thread: MaskThread,
    sequences: BTreeMap<SequenceId, Sequence>,
    peak_memory: usize,
}

impl Worker {
    pub fn new(
        (decoder, pool): (Box<dyn Forward>, ThreadPool),
        text: Arc<TextProcessor>,
        options: EngineOptions,
        inbox: Inbox,
    ) -> Self {
        let worker = Self {
            decoder,
            pool,
            parts: SequenceParts { text, context_len: options.context_len, isa: options.isa },
            scheduler: Scheduler::new(options.limits.clone()),
            prefill_budget: PrefillBudget::default(),
            mask_thread: MaskThread::default(),
            sequences: BTreeMap::new(),
            peak_memory: options.weight_bytes,
            options,
            inbox,
        };
        worker.report();
        worker
    }

    /// Runs until the model closes.
    pub fn run(mut self) {
        // Fires even after a panic, so that nobody waits for ever.
        let closed = self.inbox.closed.clone().drop_guard();
        let state = self.inbox.state.clone();
        let _alive = state.alive("worker");
        while !state.closing.is_cancelled() {
            self.intake();
            let chunks = self.scheduler.schedule(|streams| self.prefill_budget.prompt_tokens(streams));
            if chunks.is_empty() {
                self.note_capacity();
                self.report();
                self.sleep();
            } else {
                self.pass(chunks);
            }
        }
        for id in self.sequences.keys().copied().collect::<Vec<_>>() {
            self.end(id, state.closed_error().into());
        }
        self.inbox.requests.close();
        while let Ok(request) = self.inbox.requests.try_recv() {
            request.context.fail(state.closed_error());
        }
        drop(self);
        drop(closed);
    }

    /// Takes new requests, and ends requests that are cancelled or whose deadline has passed.
    fn intake(&mut self) {
        while let Ok(request) = self.inbox.requests.try_recv() {
            self.add(request);
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

    fn add(&mut self, mut request: TokenizedRequest) {
        let (id, tokens) = (request.id, std::mem::take(&mut request.tokens));
        let namespace = CacheNamespace {
            salt: request.config.cache_salt.take().map(Arc::from),
            rope_variant: self.decoder.rope_variant(tokens.len(), tokens.len()),
            adapter: request.adapter.as_ref().map(|loaded| loaded.id),
        };
        let priority = request.config.priority;
        let sequence = Sequence::new(request, &tokens, &self.parts);
        let all_rows = sequence.wants_all_rows();
        self.scheduler.add(id, Arrival { tokens, priority, namespace, all_rows });
        self.sequences.insert(id, sequence);
    }

    /// Waits for a request, a reader that makes room, a cancellation, a deadline, or the end.
    fn sleep(&mut self) {
        let contexts = || self.sequences.values().map(|sequence| &sequence.context);
        let mut cancellations: FuturesUnordered<_> =
            contexts().map(|context| context.sender.cancellation().cancelled()).collect();
        let deadline = contexts().filter_map(|context| context.deadline).min();
        let closing = self.inbox.state.closing.clone();
        let request = block_on(async {
            tokio::select! {
                () = closing.cancelled() => None,
                () = self.inbox.wake.notified() => None,
                Some(()) = cancellations.next() => None,
                () = reached(deadline) => None,
                request = self.inbox.requests.recv() => match request {
                    Some(request) => Some(request),
                    // The tokenizer thread has ended, so the model is about to close.
                    None => { closing.cancelled().await; None }
                },
            }
        });
        drop(cancellations);
        if let Some(request) = request {
            self.add(request);
        }
    }

    /// Takes requests that have come with the first ones as soon as they are tokenized, so that they share passes.
    fn gather(&mut self) {
        let until = Instant::now() + MAX_GATHERING;
        while self.inbox.state.in_flight() > self.sequences.len() {
            let next = block_on(async {
                tokio::select! {
                    biased;
                    request = self.inbox.requests.recv() => request,
                    () = reached(Some(until)) => None,
                }
            });
            let Some(request) = next else { return };
            self.add(request);
        }
    }

    /// One forward pass over all chunks, then sampling and delivery.
    fn pass(&mut self, chunks: Vec<Chunk>) {
        self.start(&chunks);
        let memory = self.memory();
        let steps = self.compute(&chunks, memory).unwrap_or_else(|error| {
            tracing::error!(%error, "a forward pass failed");
            // Nothing of the pass is in the cache.
            let failed = |_| Step::Failed(error.clone());
            chunks.iter().map(failed).collect()
        });
        let sampled = steps.iter().filter(|step| matches!(step, Step::Advanced(_))).count();
        let price = self.prefill_budget.draft_price(sampled);
        let (mut outcomes, mut ends) = (Vec::with_capacity(chunks.len()), Vec::new());
        for (chunk, step) in chunks.into_iter().zip(steps) {
            let (outcome, end) = self.outcome(chunk, step, price);
            ends.extend(end.map(|end| (outcome.chunk.id, end)));
            outcomes.push(outcome);
        }
        self.scheduler.apply(outcomes);
        for (id, end) in ends {
            self.end(id, end);
        }
    }

    /// Runs the decoder and samples. A step for each chunk.
    fn compute(&mut self, chunks: &[Chunk], memory: MemoryUse) -> Result<Vec<Step>> {
        let batch = self.pack(chunks);
        let Self { decoder, pool, inbox, sequences, prefill_budget, .. } = self;
        let run = || {
            pool.scope(|| {
                let guard = inbox.compute_lock.lock_for_pass();
                let begun = Instant::now();
                let outputs = decoder.forward(&batch)?;
                let took = begun.elapsed();
                drop(guard);
                note_pass(chunks, took, prefill_budget, &inbox.state);
                advance(sequences, chunks, &outputs, memory)
            })
        };
        let ran = catch_unwind(AssertUnwindSafe(run));
        ran.unwrap_or_else(|panic| Err(Error::panicked("the model's worker", panic.as_ref())))
    }

    /// The outcome of a chunk for the scheduler, with a draft of the next tokens, and the end of its request.
    fn outcome(&mut self, chunk: Chunk, step: Step, price: f64) -> (ChunkOutcome, Option<End>) {
        let StepResult { sampled, end, .. } = match step {
            Step::Prefilled => StepResult::default(),
            Step::Advanced(result) => result,
            Step::Failed(error) => {
                return (ChunkOutcome { chunk, sampled: Vec::new(), next: NextStep::Fail }, Some(error.into()));
            }
        };
        let next = match (&end, chunk.samples) {
            (Some(_), _) => NextStep::End,
            (None, true) => self.draft(&chunk, sampled.len(), price),
            (None, false) => NextStep::Continue,
        };
        (ChunkOutcome { chunk, sampled, next }, end)
    }

    /// Drafts the tokens after a chunk and `sampled` more tokens.
    fn draft(&mut self, chunk: &Chunk, sampled: usize, price: f64) -> NextStep {
        let Some(sequence) = self.sequences.get_mut(&chunk.id) else { return NextStep::Continue };
        let mut draft = sequence.draft(price);
        let len = chunk.start + chunk.len + sampled;
        let variant = |len| self.decoder.rope_variant(sequence.prompt_len(), len);
        // All of a chunk is computed with one rope variant.
        draft.truncate((1..=draft.len()).take_while(|more| variant(len + more) == variant(len)).count());
        NextStep::Decode { rope_variant: variant(len), draft }
    }

    /// Tells the sequences that they are in the next pass.
    fn start(&mut self, chunks: &[Chunk]) {
        let (mut prompt_tokens, mut cached) = (0, 0);
        for chunk in chunks {
            let Some(sequence) = self.sequences.get_mut(&chunk.id) else { continue };
            if sequence.start(chunk.start) {
                prompt_tokens += sequence.prompt_len();
                cached += chunk.start;
            }
            if chunk.output_rows() > 0 {
                sequence.start_mask(chunk, &mut self.mask_thread);
            }
        }
        self.note_capacity();
        self.inbox.state.update(|stats| {
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
                states: chunk.states.clone(),
                adapter: sequence.and_then(Sequence::adapter),
            });
            batch.tokens.extend(self.scheduler.tokens(chunk).iter().chain(&chunk.draft));
            batch.positions.extend(start as u32..end as u32);
            let rows = batch.tokens.len();
            batch.sampled.extend((rows - chunk.output_rows()) as u32..rows as u32);
        }
        batch
    }

    /// Ends a sequence and frees its blocks.
    fn end(&mut self, id: SequenceId, end: End) {
        let memory = self.memory();
        self.scheduler.remove(id);
        self.decoder.forget(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            // A reader that sees the end finds memory and slot free.
            self.note_capacity();
            self.report();
            let metrics = sequence.metrics(memory);
            sequence.context.end(end, metrics);
        }
    }

    /// Tells the queue how many sequences run or could run at once.
    fn note_capacity(&self) {
        let begun = self.sequences.values().filter(|sequence| sequence.has_started()).count();
        self.inbox.queue.set_capacity(begun + self.scheduler.idle_slots());
    }

    /// Publishes the scheduler's gauges.
    fn report(&self) {
        let EngineOptions { block_bytes, state_bytes, limits, .. } = &self.options;
        self.inbox.state.update(|stats| {
            stats.running = self.scheduler.running();
            stats.preemptions = self.scheduler.preemptions();
            stats.weight_bytes = self.options.weight_bytes;
            stats.kv_capacity_bytes = limits.cache_blocks * block_bytes + limits.state_slots * state_bytes;
            stats.kv_capacity_tokens = limits.cache_blocks * limits.block_tokens;
            stats.kv_used_bytes = self.used_bytes();
            stats.kv_cached_bytes =
                self.scheduler.idle_blocks() * block_bytes + self.scheduler.idle_states() * state_bytes;
        });
    }

    /// Memory of the cache that sequences hold.
    fn used_bytes(&self) -> usize {
        let EngineOptions { block_bytes, state_bytes, .. } = &self.options;
        self.scheduler.used_blocks() * block_bytes + self.scheduler.used_states() * state_bytes
    }

    fn memory(&mut self) -> MemoryUse {
        let active = self.options.weight_bytes + self.used_bytes();
        self.peak_memory = self.peak_memory.max(active);
        MemoryUse { active, peak: self.peak_memory }
    }
}

/// The step of a chunk.
enum Step {
    /// No outputs were wanted.
    Prefilled,
    Advanced(StepResult),
    Failed(Error),
}

/// Learns from a pass and counts it, before anybody can see its tokens.
fn note_pass(chunks: &[Chunk], took: Duration, prefill_budget: &mut PrefillBudget, state: &ModelState) {
    let drafted: usize = chunks.iter().map(|chunk| chunk.draft.len()).sum();
    let rows = chunks.iter().map(|chunk| chunk.len).sum::<usize>() + drafted;
    let streams = chunks.iter().filter(|chunk| chunk.len == 1 && chunk.samples).count();
    let sampled = chunks.iter().filter(|chunk| chunk.samples && !chunk.all_rows).count();
    match rows - streams - drafted {
        prompts if drafted == 0 => prefill_budget.note(streams, prompts, took),
        0 => prefill_budget.note_drafts(streams, drafted, took),
        // Prompts and drafts share the time in unknown parts.
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

/// Hands the outputs, `[output rows, …]`, to the sequences, several at a time: they share nothing. A step for each
/// chunk.
fn advance(
    sequences: &mut BTreeMap<SequenceId, Sequence>,
    chunks: &[Chunk],
    outputs: &Outputs,
    memory: MemoryUse,
) -> Result<Vec<Step>> {
    let rows: usize = chunks.iter().map(Chunk::output_rows).sum();
    let mut logits = outputs.logits.as_slice();
    if rows > 0 && (logits.is_empty() || !logits.len().is_multiple_of(rows)) {
        return Err(Error::internal(format!("a forward pass gave {} logits for {rows} rows", logits.len())));
    }
    let vocab_size = logits.len() / rows.max(1);
    let mut sequences: BTreeMap<_, _> = sequences.iter_mut().collect();
    let mut steps = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let own = logits.split_off(..chunk.output_rows() * vocab_size).unwrap_or_default();
        let sequence = if own.is_empty() { None } else { sequences.remove(&chunk.id) };
        steps.push((chunk, own, sequence, Step::Prefilled));
    }
    parallel::for_each_mut(&mut steps, |_, (chunk, logits, sequence, step)| {
        if let Some(sequence) = sequence {
            *step = Step::Advanced(sequence.advance(chunk, logits, memory));
        }
    });
    Ok(steps.into_iter().map(|(_, _, _, step)| step).collect())
}
