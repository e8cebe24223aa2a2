use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{Mode, front::Prepared, sampler::Sampler};
use crate::{
    Error, FinishReason, GenerateMetrics, Result, Token, TokenSender,
    model::rate,
    text::{Answer, TextProcessor},
};

/// A request that the worker has taken: its tokens, and what turns logits into its answer.
pub struct Sequence {
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    pub sender: TokenSender,
    text: Arc<TextProcessor>,
    prompt_len: usize,
    max_len: usize,
    end_ids: Vec<u32>,
    mode: Mode,
    sampler: Sampler,
    answer: Answer,
    place: Option<OwnedSemaphorePermit>,
    submitted: Instant,
    started: Option<Instant>,
    first_sampled: Option<Instant>,
    last_sampled: Option<Instant>,
    delivered: usize,
}

/// Why a sequence is over.
pub struct End {
    pub reason: FinishReason,
    pub error: Option<Error>,
}

impl Sequence {
    pub fn new(prepared: Prepared, text: Arc<TextProcessor>, context_len: usize, entropy: u64) -> Self {
        let Prepared { request, tokens } = prepared;
        let config = &request.config;
        Self {
            prompt_len: tokens.len(),
            max_len: tokens.len().saturating_add(config.max_tokens).min(context_len),
            end_ids: [text.end_ids.as_slice(), &config.stop_tokens].concat(),
            sampler: Sampler::new(config, &tokens, entropy),
            answer: Answer::new(text.clone(), config.stop.clone()),
            tokens,
            text,
            sender: request.sender,
            mode: request.mode,
            place: Some(request.place),
            submitted: request.submitted,
            started: None,
            first_sampled: None,
            last_sampled: None,
            delivered: 0,
        }
    }

    /// Notes that its first forward pass begins, and gives its place in the queue back.
    pub fn start(&mut self) {
        self.place = None;
        self.started.get_or_insert_with(Instant::now);
    }

    /// Takes the logits after its last token: samples, delivers what is decided, and says if that
    /// was all.
    pub fn advance(&mut self, logits: Vec<f32>, memory: Memory) -> Option<End> {
        match self.step(logits, memory) {
            Ok(end) => end,
            Err(error) => Some(End { reason: FinishReason::Error, error: Some(error) }),
        }
    }

    fn step(&mut self, logits: Vec<f32>, memory: Memory) -> Result<Option<End>> {
        let (id, logprobs) = self.sampler.sample(&logits)?;
        let now = Instant::now();
        self.first_sampled.get_or_insert(now);
        self.last_sampled = Some(now);
        let stop = Some(End { reason: FinishReason::Stop, error: None });
        if let Mode::Classify(reply) = &mut self.mode {
            if let Some(reply) = reply.take() {
                // A caller that is gone needs no logits.
                let _ = reply.send(logits);
            }
            let printed = !self.text.tokenizer.is_special(id);
            let text = if printed { self.text.tokenizer.decode(&[id])? } else { String::new() };
            self.deliver(vec![Token { id, text, logprobs }], memory);
            return Ok(stop);
        }
        if self.end_ids.contains(&id) {
            let rest = self.answer.finish()?;
            self.deliver(rest, memory);
            return Ok(stop);
        }
        self.tokens.push(id);
        let step = self.answer.push(id, logprobs)?;
        let full = self.tokens.len() >= self.max_len && !step.stopped;
        let mut ready = step.ready;
        if full {
            ready.extend(self.answer.finish()?);
        }
        self.deliver(ready, memory);
        Ok(match (step.stopped, full) {
            (true, _) => stop,
            (false, true) => Some(End { reason: FinishReason::Length, error: None }),
            (false, false) => None,
        })
    }

    fn deliver(&mut self, tokens: Vec<Token>, memory: Memory) {
        if tokens.is_empty() {
            return;
        }
        self.delivered += tokens.len();
        // There is room: the sequence was not scheduled without. A reader that is gone is noticed
        // by its cancellation token.
        let _ = self.sender.try_send(tokens, self.metrics(memory));
    }

    /// The figures so far.
    pub fn metrics(&self, memory: Memory) -> GenerateMetrics {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let since = |from: Option<Instant>, to: Instant| from.map_or(Duration::ZERO, |from| to - from);
        let prefill_duration = since(self.started, self.first_sampled.unwrap_or(now));
        let decode_duration = since(self.first_sampled, self.last_sampled.unwrap_or(now));
        let decoded = (self.tokens.len() - self.prompt_len).saturating_sub(1);
        GenerateMetrics {
            prompt_tokens: self.prompt_len,
            generated_tokens: self.delivered,
            cached_prompt_tokens: 0,
            queue_duration: started - self.submitted,
            prefill_duration,
            decode_duration,
            total_duration: now - self.submitted,
            time_to_first_token: self.first_sampled.map_or(Duration::ZERO, |first| first - self.submitted),
            prefill_tokens_per_sec: rate(self.prompt_len, prefill_duration),
            decode_tokens_per_sec: rate(decoded, decode_duration),
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
