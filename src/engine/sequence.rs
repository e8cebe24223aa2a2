use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Mode, Request,
    adapters::LoadedAdapter,
    admission::Permit,
    prompt_lookup::PromptLookup,
    request_context::{End, RequestContext},
    sampler::Sampler,
    scheduler::Chunk,
};
use crate::{
    GenerateConfig, GenerateMetrics, Result, Token,
    decoder::LoraAdapter,
    kernels::threads::parallel,
    metrics::tokens_per_sec,
    stream::waking,
    text::{OutputText, TextProcessor},
};

/// A request that the worker has taken, and what turns logits into its answer.
pub struct Sequence {
    pub context: RequestContext,
    prompt_len: usize,
    /// The tokens of a prompt that is scored.
    prompt: Vec<u32>,
    /// Tokens of it that are.
    scored: usize,
    /// Tokens of the prompt that the cache had.
    cached_len: usize,
    /// Tokens sampled, the one that ends the answer not among them.
    sampled: usize,
    max_tokens: usize,
    end_ids: Vec<u32>,
    mode: Mode,
    adapter: Option<LoadedAdapter>,
    sampler: Sampler,
    answer: OutputText,
    lookup: Option<PromptLookup>,
    /// Tokens of drafts that were computed, and those of them that were right.
    drafted: usize,
    accepted: usize,
    started: Option<Instant>,
    first_sampled: Option<Instant>,
    last_sampled: Option<Instant>,
    delivered: usize,
}

/// What came of a sequence's logits.
#[derive(Default)]
pub struct StepOutcome {
    /// Its next tokens: those of the draft that were right, and one more.
    pub tokens: Vec<u32>,
    pub end: Option<End>,
}

impl Sequence {
    pub fn new(
        request: Request,
        prompt: &[u32],
        text: Arc<TextProcessor>,
        context_len: usize,
        sampler: Sampler,
    ) -> Self {
        let Request { config, stops, mode, adapter, context } = request;
        context.span.in_scope(|| tracing::debug!(prompt_tokens = prompt.len(), "prompt encoded"));
        let GenerateConfig { max_tokens, min_tokens, ignore_eos, stop_tokens, prompt_lookup, .. } = config;
        let model_ends = if ignore_eos { &[] } else { text.end_ids.as_slice() };
        // Of a prompt that is scored, all is answer.
        let preceding = if matches!(mode, Mode::Score) { &[] } else { prompt };
        let drafts = prompt_lookup > 0 && matches!(mode, Mode::Generate);
        Self {
            prompt_len: prompt.len(),
            prompt: if matches!(mode, Mode::Score) { prompt.to_vec() } else { Vec::new() },
            scored: 0,
            cached_len: 0,
            sampled: 0,
            max_tokens: max_tokens.min(context_len.saturating_sub(prompt.len())),
            end_ids: [model_ends, &stop_tokens].concat(),
            sampler,
            answer: OutputText::new(text.clone(), preceding, stops).min_tokens(min_tokens),
            lookup: drafts.then(|| PromptLookup::new(prompt_lookup, prompt)),
            drafted: 0,
            accepted: 0,
            context,
            mode,
            adapter,
            started: None,
            first_sampled: None,
            last_sampled: None,
            delivered: 0,
        }
    }

    /// Notes that a forward pass begins, and says whether it is the first, which gives the place in the
    /// queue back and tells what the cache has of the prompt.
    pub fn start(&mut self, cached_len: usize) -> bool {
        let first = self.started.is_none();
        if first {
            self.started = Some(Instant::now());
            self.context.place.iter_mut().for_each(Permit::begin);
            self.cached_len = cached_len;
        }
        first
    }

    /// Whether a forward pass has begun with it.
    pub fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// Whether its prompt is what the logits are wanted of.
    pub fn is_scored(&self) -> bool {
        !self.prompt.is_empty()
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// What changes the model for it.
    pub fn adapter(&self) -> Option<Arc<LoraAdapter>> {
        self.adapter.as_ref().map(|loaded| loaded.adapter.clone())
    }

    /// Takes the logits after its last token and after each one of a draft, or after each one of a chunk that is
    /// scored,
    /// `[rows, vocab_size]`, and delivers what is decided.
    pub fn advance(&mut self, chunk: &Chunk, logits: &[f32], memory: Memory) -> StepOutcome {
        if !chunk.scored {
            return self.follow(&chunk.draft, logits, memory);
        }
        let end = self.score(chunk, logits, memory).unwrap_or_else(|error| Some(error.into()));
        StepOutcome { tokens: Vec::new(), end }
    }

    /// Samples for as long as a draft is right.
    fn follow(&mut self, draft: &[u32], logits: &[f32], memory: Memory) -> StepOutcome {
        let (mut step, mut ready) = (StepOutcome::default(), Vec::new());
        let mut draft_left = draft.iter();
        for logits in logits.chunks_exact(logits.len() / (1 + draft.len())) {
            step.end = self.sample(logits, &mut step.tokens, &mut ready).unwrap_or_else(|error| Some(error.into()));
            // What the next logits follow must be what was sampled.
            if step.end.is_some() || draft_left.next() != step.tokens.last() {
                break;
            }
        }
        self.note_draft(draft.len(), &step.tokens);
        self.deliver(ready, memory);
        step
    }

    /// Tells how likely the tokens after those of a chunk are. One that is computed again, after a preemption, may be
    /// known already.
    fn score(&mut self, chunk: &Chunk, logits: &[f32], memory: Memory) -> Result<Option<End>> {
        let mut ready = Vec::new();
        if self.scored == 0 {
            ready.extend(self.answer.push(self.prompt[0], None)?.ready);
            self.scored = 1;
        }
        let rows = logits.chunks_exact(logits.len() / chunk.len).zip(&self.prompt[chunk.start + 1..]);
        let rows: Vec<_> = rows.skip(self.scored - chunk.start - 1).collect();
        let found = parallel::map(&rows, |_, (row, id)| self.sampler.score(row, **id));
        for logprobs in found {
            ready.extend(self.answer.push(self.prompt[self.scored], Some(logprobs?))?.ready);
            self.scored += 1;
        }
        if chunk.samples {
            ready.extend(self.answer.finish()?);
        }
        self.deliver(ready, memory);
        Ok(chunk.samples.then(End::stop))
    }

    /// Samples a token, adds what is decided to `ready`, and says whether that is the end.
    fn sample(&mut self, logits: &[f32], tokens: &mut Vec<u32>, ready: &mut Vec<Token>) -> Result<Option<End>> {
        let (id, logprobs) = self.sampler.sample(logits)?;
        tokens.push(id);
        let now = Instant::now();
        self.first_sampled.get_or_insert(now);
        self.last_sampled = Some(now);
        if let Mode::Classify(reply) = &mut self.mode {
            if let Some(reply) = reply.take() {
                // A caller that is gone needs no logits.
                let _ = waking(|| reply.send(logits.to_vec()));
            }
            ready.push(self.answer.only(id, logprobs)?);
            return Ok(Some(End::stop()));
        }
        if self.end_ids.contains(&id) {
            ready.extend(self.answer.finish()?);
            return Ok(Some(End::stop()));
        }
        self.sampled += 1;
        let step = self.answer.push(id, logprobs)?;
        ready.extend(step.ready);
        if step.stopped {
            return Ok(Some(End::stop()));
        }
        if self.sampled >= self.max_tokens {
            ready.extend(self.answer.finish()?);
            return Ok(Some(End::length()));
        }
        Ok(None)
    }

    /// Counts a draft, before anybody can have seen its tokens.
    fn note_draft(&mut self, drafted: usize, sampled: &[u32]) {
        let Some(lookup) = &mut self.lookup else { return };
        let accepted = sampled.len().saturating_sub(1);
        lookup.note(drafted, accepted);
        sampled.iter().for_each(|token| lookup.push(*token));
        self.drafted += drafted;
        self.accepted += accepted;
        if accepted > 0 {
            self.context.state.update(|stats| {
                stats.accepted_tokens += accepted as u64;
                stats.sampled_tokens += accepted as u64;
            });
        }
    }

    /// What may follow its last token, if a guess that is wrong costs `price` tokens. One more is sampled after that,
    /// so it ends before the last one there may be.
    pub fn guess(&mut self, price: f64) -> Vec<u32> {
        let Some(lookup) = &mut self.lookup else { return Vec::new() };
        let mut draft = lookup.guess(self.max_tokens.saturating_sub(self.sampled + 1), price);
        let end = draft.iter().position(|id| self.end_ids.contains(id));
        draft.truncate(end.unwrap_or(draft.len()));
        draft
    }

    fn deliver(&mut self, tokens: Vec<Token>, memory: Memory) {
        if tokens.is_empty() {
            return;
        }
        if !self.is_scored() {
            self.delivered += tokens.len();
        }
        // There is room: the sequence was not scheduled without. A reader that is gone is noticed
        // by its cancellation token.
        let _ = self.context.sender.try_send(tokens, self.metrics(memory));
    }

    /// The figures so far.
    pub fn metrics(&self, memory: Memory) -> GenerateMetrics {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let since = |from: Option<Instant>, to: Instant| from.map_or(Duration::ZERO, |from| to - from);
        let prefill_duration = since(self.started, self.first_sampled.unwrap_or(now));
        let decode_duration = since(self.first_sampled, self.last_sampled.unwrap_or(now));
        let submitted = self.context.submitted;
        GenerateMetrics {
            prompt_tokens: self.prompt_len,
            generated_tokens: self.delivered,
            cached_prompt_tokens: self.cached_len,
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            queue_duration: started - submitted,
            prefill_duration,
            decode_duration,
            total_duration: now - submitted,
            time_to_first_token: self.first_sampled.map_or(Duration::ZERO, |first| first - submitted),
            prefill_tokens_per_sec: tokens_per_sec(self.prompt_len - self.cached_len, prefill_duration),
            decode_tokens_per_sec: tokens_per_sec(self.sampled.saturating_sub(1), decode_duration),
            peak_memory_bytes: memory.peak,
            active_memory_bytes: memory.active,
        }
    }
}

/// Bytes the model holds, now and at most so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub active: usize,
    pub peak: usize,
}
