//! The timings of a request, and its metrics.

use std::time::{Duration, Instant};

use crate::{GenerateMetrics, metrics::tokens_per_sec};

/// The times of a request that its [`GenerateMetrics`] are computed from.
#[derive(Debug, Clone, Copy)]
pub struct RequestTimings {
    /// The call.
    pub submitted: Instant,
    /// The first forward pass, or the moment the request was sent to a server.
    pub started: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
}

/// The token counts of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenCounts {
    pub prompt: usize,
    /// Tokens of the prompt that were found in a prefix cache.
    pub cached: usize,
    /// Tokens sampled, without one that ends the answer.
    pub sampled: usize,
    /// Tokens given to the stream.
    pub delivered: usize,
    pub drafted: usize,
    pub accepted: usize,
}

/// Bytes that the model holds, now and at most so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryUse {
    pub active: usize,
    pub peak: usize,
}

impl RequestTimings {
    pub fn new(submitted: Instant) -> Self {
        Self { submitted, started: None, first_token: None, last_token: None }
    }

    /// Notes the time of a token.
    pub fn token(&mut self) {
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// The metrics up to now.
    pub fn metrics(&self, counts: TokenCounts, memory: MemoryUse) -> GenerateMetrics {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let since = |from: Option<Instant>, to: Instant| from.map_or(Duration::ZERO, |from| to - from);
        let prefill_duration = since(self.started, self.first_token.unwrap_or(now));
        let decode_duration = since(self.first_token, self.last_token.unwrap_or(now));
        GenerateMetrics {
            prompt_tokens: counts.prompt,
            generated_tokens: counts.delivered,
            cached_prompt_tokens: counts.cached,
            drafted_tokens: counts.drafted,
            accepted_tokens: counts.accepted,
            queue_duration: started - self.submitted,
            prefill_duration,
            decode_duration,
            total_duration: now - self.submitted,
            time_to_first_token: self.first_token.map_or(Duration::ZERO, |first| first - self.submitted),
            prefill_tokens_per_sec: tokens_per_sec(counts.prompt.saturating_sub(counts.cached), prefill_duration),
            decode_tokens_per_sec: tokens_per_sec(counts.sampled.saturating_sub(1), decode_duration),
            peak_memory_bytes: memory.peak,
            active_memory_bytes: memory.active,
        }
    }
}
