use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rayon::prelude::*;

use super::{
    Mode, Request,
    adapters::Loaded,
    sampler::Sampler,
    scheduler::Chunk,
    ticket::{End, Ticket},
};
use crate::{
    GenerateConfig, GenerateMetrics, Result, Token,
    decoder::Adapter,
    model::rate,
    text::{Answer, TextProcessor},
};

/// A request that the worker has taken, and what turns logits into its answer.
pub struct Sequence {
    pub ticket: Ticket,
    text: Arc<TextProcessor>,
    prompt_len: usize,
    /// The tokens of a prompt that is scored.
    prompt: Vec<u32>,
    /// Tokens of it that are.
    scored: usize,
    /// Tokens of the prompt that the cache had.
    cached_len: usize,
    /// Tokens sampled, an end-of-text token not among them.
    sampled: usize,
    max_tokens: usize,
    end_ids: Vec<u32>,
    mode: Mode,
    adapter: Option<Loaded>,
    sampler: Sampler,
    answer: Answer,
    started: Option<Instant>,
    first_sampled: Option<Instant>,
    last_sampled: Option<Instant>,
    delivered: usize,
}

/// What came of a sequence's logits.
pub enum Step {
    /// Its next token.
    Token(u32),
    /// There is more of the prompt.
    More,
    End(End),
}

impl Sequence {
    pub fn new(request: Request, prompt: &[u32], text: Arc<TextProcessor>, context_len: usize, entropy: u64) -> Self {
        let Request { config, mode, adapter, ticket, .. } = request;
        ticket.span.in_scope(|| tracing::debug!(prompt_tokens = prompt.len(), "prompt encoded"));
        let sampler = Sampler::new(&config, prompt, entropy);
        let GenerateConfig { max_tokens, stop, stop_tokens, .. } = config;
        Self {
            prompt_len: prompt.len(),
            prompt: if matches!(mode, Mode::Score) { prompt.to_vec() } else { Vec::new() },
            scored: 0,
            cached_len: 0,
            sampled: 0,
            max_tokens: max_tokens.min(context_len.saturating_sub(prompt.len())),
            end_ids: [text.end_ids.as_slice(), &stop_tokens].concat(),
            sampler,
            answer: Answer::new(text.clone(), stop),
            text,
            ticket,
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
            self.ticket.place = None;
            self.cached_len = cached_len;
        }
        first
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
    pub fn adapter(&self) -> Option<Arc<Adapter>> {
        self.adapter.as_ref().map(|loaded| loaded.adapter.clone())
    }

    /// Takes the logits after its last token, or after each one of a chunk that is scored, `[rows, vocab_size]`. Samples,
    /// and delivers what is decided.
    pub fn advance(&mut self, chunk: &Chunk, logits: &[f32], memory: Memory) -> Step {
        let step = if chunk.scored { self.score(chunk, logits, memory) } else { self.step(logits, memory) };
        step.unwrap_or_else(|error| Step::End(error.into()))
    }

    /// Tells how likely the tokens after those of a chunk are. One that is computed again, after a preemption, may be
    /// known already.
    fn score(&mut self, chunk: &Chunk, logits: &[f32], memory: Memory) -> Result<Step> {
        let mut ready = Vec::new();
        if self.scored == 0 {
            ready.extend(self.answer.push(self.prompt[0], None)?.ready);
            self.scored = 1;
        }
        let rows = logits.par_chunks_exact(logits.len() / chunk.len).zip(&self.prompt[chunk.start + 1..]);
        let found: Vec<_> =
            rows.skip(self.scored - chunk.start - 1).map(|(row, id)| self.sampler.score(row, *id)).collect();
        for logprobs in found {
            ready.extend(self.answer.push(self.prompt[self.scored], Some(logprobs?))?.ready);
            self.scored += 1;
        }
        if chunk.samples {
            ready.extend(self.answer.finish()?);
        }
        self.deliver(ready, memory);
        Ok(if chunk.samples { Step::End(End::stop()) } else { Step::More })
    }

    fn step(&mut self, logits: &[f32], memory: Memory) -> Result<Step> {
        let (id, logprobs) = self.sampler.sample(logits)?;
        let now = Instant::now();
        self.first_sampled.get_or_insert(now);
        self.last_sampled = Some(now);
        if let Mode::Classify(reply) = &mut self.mode {
            if let Some(reply) = reply.take() {
                // A caller that is gone needs no logits.
                let _ = reply.send(logits.to_vec());
            }
            let printed = !self.text.tokenizer.is_special(id);
            let text = if printed { self.text.tokenizer.decode(&[id])? } else { String::new() };
            self.deliver(vec![Token { id, text, logprobs }], memory);
            return Ok(Step::End(End::stop()));
        }
        if self.end_ids.contains(&id) {
            let rest = self.answer.finish()?;
            self.deliver(rest, memory);
            return Ok(Step::End(End::stop()));
        }
        self.sampled += 1;
        let step = self.answer.push(id, logprobs)?;
        let full = self.sampled >= self.max_tokens && !step.stopped;
        let mut ready = step.ready;
        if full {
            ready.extend(self.answer.finish()?);
        }
        self.deliver(ready, memory);
        Ok(match (step.stopped, full) {
            (true, _) => Step::End(End::stop()),
            (false, true) => Step::End(End::length()),
            (false, false) => Step::Token(id),
        })
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
        let _ = self.ticket.sender.try_send(tokens, self.metrics(memory));
    }

    /// The figures so far.
    pub fn metrics(&self, memory: Memory) -> GenerateMetrics {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let since = |from: Option<Instant>, to: Instant| from.map_or(Duration::ZERO, |from| to - from);
        let prefill_duration = since(self.started, self.first_sampled.unwrap_or(now));
        let decode_duration = since(self.first_sampled, self.last_sampled.unwrap_or(now));
        let submitted = self.ticket.submitted;
        GenerateMetrics {
            prompt_tokens: self.prompt_len,
            generated_tokens: self.delivered,
            cached_prompt_tokens: self.cached_len,
            queue_duration: started - submitted,
            prefill_duration,
            decode_duration,
            total_duration: now - submitted,
            time_to_first_token: self.first_sampled.map_or(Duration::ZERO, |first| first - submitted),
            prefill_tokens_per_sec: rate(self.prompt_len - self.cached_len, prefill_duration),
            decode_tokens_per_sec: rate(self.sampled.saturating_sub(1), decode_duration),
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
