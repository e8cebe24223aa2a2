use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use tokio::sync::{Notify, mpsc};

use super::{
    Options, State,
    front::Prepared,
    scheduler::{Chunk, Scheduler, SequenceId},
    sequence::{End, Memory, Sequence},
};
use crate::{
    Error, FinishReason, Result,
    decoder::{Batch, Forward, Span},
    text::TextProcessor,
};

/// The thread that owns a model's decoder. Its loop is four moves: schedule, run, sample, deliver.
pub struct Worker {
    decoder: Box<dyn Forward>,
    text: Arc<TextProcessor>,
    options: Options,
    jobs: mpsc::Receiver<Prepared>,
    wake: Arc<Notify>,
    state: Arc<State>,
    scheduler: Scheduler,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: SequenceId,
    peak_memory: usize,
}

impl Worker {
    pub fn new(
        decoder: Box<dyn Forward>,
        text: Arc<TextProcessor>,
        options: Options,
        jobs: mpsc::Receiver<Prepared>,
        wake: Arc<Notify>,
        state: Arc<State>,
    ) -> Self {
        let scheduler = Scheduler::new(options.limits.clone());
        let peak_memory = options.weight_bytes;
        let (sequences, next_id) = Default::default();
        Self { decoder, text, options, jobs, wake, state, scheduler, sequences, next_id, peak_memory }
    }

    /// Runs until the model closes.
    pub fn run(mut self) {
        // Whatever happens here, nobody waits for it for ever.
        let closed = self.state.closed.clone().drop_guard();
        while !self.state.closing.is_cancelled() {
            self.intake();
            let chunks = self.scheduler.schedule();
            if chunks.is_empty() {
                self.sleep();
            } else if let Err(error) = self.pass(&chunks) {
                tracing::error!(%error, "a forward pass failed");
                for chunk in &chunks {
                    self.end(chunk.id, End { reason: FinishReason::Error, error: Some(error.clone()) });
                }
            }
        }
        for id in self.sequences.keys().copied().collect::<Vec<_>>() {
            self.end(id, End { reason: FinishReason::Error, error: Some(Error::Closed) });
        }
        // The front may still hold requests; their senders say that the model is closed.
        drop(self);
        drop(closed);
    }

    /// Takes what has come, and lets go of what nobody waits for any more.
    fn intake(&mut self) {
        while let Ok(prepared) = self.jobs.try_recv() {
            self.add(prepared);
        }
        let mut gone = Vec::new();
        for (id, sequence) in &self.sequences {
            if sequence.sender.cancellation().is_cancelled() {
                gone.push(*id);
            } else {
                self.scheduler.set_paused(*id, !sequence.sender.has_room());
            }
        }
        for id in gone {
            self.end(id, End { reason: FinishReason::Cancelled, error: Some(Error::Cancelled) });
        }
    }

    fn add(&mut self, prepared: Prepared) {
        let entropy = RandomState::new().hash_one(self.next_id);
        let sequence = Sequence::new(prepared, self.text.clone(), self.options.context_len, entropy);
        self.scheduler.add(self.next_id, sequence.tokens.len());
        self.sequences.insert(self.next_id, sequence);
        self.next_id += 1;
    }

    /// Waits for a request, a reader that makes room, a cancellation, or the end.
    fn sleep(&mut self) {
        let cancellations = self.sequences.values().map(|sequence| sequence.sender.cancellation().cancelled());
        let mut cancellations: FuturesUnordered<_> = cancellations.collect();
        let prepared = block_on(async {
            tokio::select! {
                () = self.state.closing.cancelled() => None,
                () = self.wake.notified() => None,
                Some(()) = cancellations.next() => None,
                prepared = self.jobs.recv() => match prepared {
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

    /// One forward pass over all chunks, and what follows from its logits.
    fn pass(&mut self, chunks: &[Chunk]) -> Result<()> {
        let batch = self.pack(chunks);
        let memory = self.memory();
        let forward = catch_unwind(AssertUnwindSafe(|| self.decoder.forward(&batch)));
        let mut logits = forward.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))?.into_iter();
        for chunk in chunks {
            if !chunk.samples {
                self.scheduler.computed(chunk, false);
                continue;
            }
            let (Some(logits), Some(sequence)) = (logits.next(), self.sequences.get_mut(&chunk.id)) else {
                return Err(Error::internal("a forward pass gave too few logits"));
            };
            match sequence.advance(logits, memory) {
                Some(end) => self.end(chunk.id, end),
                None => self.scheduler.computed(chunk, true),
            }
        }
        Ok(())
    }

    fn pack(&mut self, chunks: &[Chunk]) -> Batch {
        let mut batch = Batch::default();
        for chunk in chunks {
            let Some(sequence) = self.sequences.get_mut(&chunk.id) else { continue };
            sequence.start();
            let (start, end) = (chunk.start, chunk.start + chunk.len);
            batch.spans.push(Span {
                start: batch.tokens.len(),
                len: chunk.len,
                context_len: end,
                blocks: chunk.blocks.clone(),
            });
            batch.tokens.extend(&sequence.tokens[start..end]);
            batch.positions.extend(start as u32..end as u32);
            if chunk.samples {
                batch.sampled.push(batch.tokens.len() as u32 - 1);
            }
        }
        batch
    }

    /// Ends a sequence and frees what it holds.
    fn end(&mut self, id: SequenceId, end: End) {
        let memory = self.memory();
        self.scheduler.remove(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            let metrics = sequence.metrics(memory);
            self.state.record(metrics, end.error.clone());
            sequence.sender.finish(end.reason, end.error, metrics);
        }
    }

    fn memory(&mut self) -> Memory {
        let active = self.options.weight_bytes + self.scheduler.used_blocks() * self.options.block_bytes;
        self.peak_memory = self.peak_memory.max(active);
        Memory { active, peak: self.peak_memory }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::internal(format!("the model's worker panicked: {message}"))
}
