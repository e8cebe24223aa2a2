//! A running request.

use std::{collections::hash_map::RandomState, hash::BuildHasher, sync::Arc, time::Instant};

use super::{
    drafter::Drafter,
    prompt_lookup::PromptLookup,
    sampler::Sampler,
    scheduler::Chunk,
    tasks::{Classification, Generation, Scoring, SequenceTask, StepResult},
    token_mask::{MaskState, MaskThread},
    tokenizer_thread::TokenizedRequest,
};
use crate::{
    GenerateConfig, GenerateMetrics, Token,
    adapters::{LoadedAdapter, LoraAdapter},
    kernels::Isa,
    request::{MemoryUse, RequestContext, RequestTimings, Task, TokenCounts},
    text::{OutputText, TextProcessor},
};

/// A running request: its task, timings and stream.
pub struct Sequence {
    pub context: RequestContext,
    task: SequenceTask,
    adapter: Option<LoadedAdapter>,
    prompt_len: usize,
    /// Tokens of the prompt that the cache had.
    cached_len: usize,
    delivered: usize,
    timings: RequestTimings,
}

/// The parts of a model that sequences share.
pub struct SequenceParts {
    pub text: Arc<TextProcessor>,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// The instruction set of the sampler.
    pub isa: Isa,
}

impl SequenceParts {
    /// The task of a request with this prompt.
    fn task(&self, request: &mut TokenizedRequest, prompt: &[u32]) -> SequenceTask {
        let config = &request.config;
        let entropy = RandomState::new().hash_one(request.id);
        let sampler = Sampler::new(config, prompt, &self.text.end_ids, entropy, self.isa);
        let output = |preceding| OutputText::new(self.text.clone(), preceding, request.stops.clone());
        match std::mem::replace(&mut request.task, Task::Generate) {
            Task::Generate => {
                let GenerateConfig { max_tokens, min_tokens, ignore_eos, stop_tokens, prompt_lookup, .. } = config;
                let model_ends = if *ignore_eos { &[] } else { self.text.end_ids.as_slice() };
                let drafter = || Box::new(PromptLookup::new(*prompt_lookup, prompt)) as Box<dyn Drafter>;
                SequenceTask::Generate(Box::new(Generation {
                    sampler,
                    output: output(prompt).min_tokens(*min_tokens),
                    end_ids: [model_ends, stop_tokens].concat(),
                    max_tokens: (*max_tokens).min(self.context_len.saturating_sub(prompt.len())),
                    drafter: (*prompt_lookup > 0).then(drafter),
                    mask: request.mask.take().map(MaskState::Ready),
                    counts: Default::default(),
                }))
            }
            Task::Classify { logits } => {
                SequenceTask::Classify(Box::new(Classification { sampler, output: output(prompt), reply: logits }))
            }
            Task::Score => {
                // No token precedes the output: the prompt itself is the output.
                let (output, prompt) = (output(&[]), prompt.to_vec());
                SequenceTask::Score(Box::new(Scoring { sampler, output, prompt, scored: 0 }))
            }
        }
    }
}

impl Sequence {
    pub fn new(mut request: TokenizedRequest, prompt: &[u32], parts: &SequenceParts) -> Self {
        let task = parts.task(&mut request, prompt);
        let TokenizedRequest { adapter, context, .. } = request;
        context.span.in_scope(|| tracing::debug!(prompt_tokens = prompt.len(), "prompt encoded"));
        let timings = RequestTimings::new(context.submitted);
        Self { context, task, adapter, prompt_len: prompt.len(), cached_len: 0, delivered: 0, timings }
    }

    /// Notes that a forward pass begins, and says whether it is the sequence's first one, for which the cache had
    /// `cached_len` tokens of the prompt.
    pub fn start(&mut self, cached_len: usize) -> bool {
        let first = self.timings.started.is_none();
        if first {
            self.timings.started = Some(Instant::now());
            self.context.begin();
            self.cached_len = cached_len;
        }
        first
    }

    /// Starts to compute the mask of a chunk's output rows, beside the forward pass.
    pub fn start_mask(&mut self, chunk: &Chunk, thread: &mut MaskThread) {
        if let SequenceTask::Generate(generation) = &mut self.task {
            generation.start_mask(&chunk.draft, thread);
        }
    }

    /// Whether a forward pass has begun with it.
    pub fn has_started(&self) -> bool {
        self.timings.started.is_some()
    }

    /// Whether the outputs after all of its tokens are wanted, and not after the last one only.
    pub fn wants_all_rows(&self) -> bool {
        self.task.wants_all_rows()
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// The adapter that changes the model for it.
    pub fn adapter(&self) -> Option<Arc<LoraAdapter>> {
        self.adapter.as_ref().map(|loaded| loaded.adapter.clone())
    }

    /// Takes the logits of a chunk's output rows, `[rows, vocab_size]`, and delivers the tokens that are decided.
    pub fn advance(&mut self, chunk: &Chunk, logits: &[f32], memory: MemoryUse) -> StepResult {
        let mut step = self.task.advance(chunk, logits);
        if !step.sampled.is_empty() {
            self.timings.token();
        }
        // Counted before anybody can see the tokens.
        let accepted = step.sampled.len().saturating_sub(1) as u64;
        if accepted > 0 {
            self.context.state.update(|stats| {
                stats.accepted_tokens += accepted;
                stats.sampled_tokens += accepted;
            });
        }
        self.deliver(std::mem::take(&mut step.ready), memory);
        step
    }

    /// A draft of the next tokens, if a wrong one costs `price` tokens.
    pub fn draft(&mut self, price: f64) -> Vec<u32> {
        match &mut self.task {
            SequenceTask::Generate(generation) => generation.draft(price),
            _ => Vec::new(),
        }
    }

    fn deliver(&mut self, tokens: Vec<Token>, memory: MemoryUse) {
        if tokens.is_empty() {
            return;
        }
        if !matches!(self.task, SequenceTask::Score(_)) {
            self.delivered += tokens.len();
        }
        // There is room: a sequence without is not scheduled. The cancellation token tells of a reader that is gone.
        let _ = self.context.sender.try_send(tokens, self.metrics(memory));
    }

    /// The metrics up to now.
    pub fn metrics(&self, memory: MemoryUse) -> GenerateMetrics {
        let generated = match &self.task {
            SequenceTask::Generate(generation) => generation.counts,
            _ => Default::default(),
        };
        let counts = TokenCounts {
            prompt: self.prompt_len,
            cached: self.cached_len,
            sampled: generated.sampled,
            delivered: self.delivered,
            drafted: generated.drafted,
            accepted: generated.accepted,
        };
        self.timings.metrics(counts, memory)
    }
}
