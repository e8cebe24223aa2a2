//! Description, counters and measurements of models and requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Description of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The architecture's name: "llama", "qwen3", …
    pub architecture: String,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Bits per weight of most weights; 0 if they are not quantized.
    pub quant_bits: u32,
    /// Weights that share a scale; 0 if they are not quantized.
    pub quant_group: u32,
    /// Tokens a sequence may hold, prompt and answer together.
    pub context_len: usize,
}

/// State of a model: gauges of this moment, and counters since it was loaded. Durations serialize as seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelStats {
    /// Running requests: they hold blocks of the KV cache. Requests that pause for their reader count.
    pub running: usize,
    /// Waiting requests: queued, being tokenized, or preempted.
    pub waiting: usize,
    /// Bytes of the weights, with adapters.
    pub weight_bytes: usize,
    /// Bytes of the KV cache.
    pub kv_capacity_bytes: usize,
    /// Tokens that the KV cache can hold.
    pub kv_capacity_tokens: usize,
    /// Bytes of the KV cache that running requests hold.
    pub kv_used_bytes: usize,
    /// Bytes of the prefix cache: blocks that no request holds, kept for later requests with the same prefix.
    pub kv_cached_bytes: usize,
    /// Number of forward passes.
    pub passes: u64,
    /// Time spent in forward passes.
    #[serde(with = "crate::serde_seconds")]
    pub pass_duration: Duration,
    /// Tokens computed in forward passes: prompts, answers, drafts, and recomputation after a preemption.
    pub batched_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Draft tokens of speculative decoding ([`prompt_lookup`](crate::GenerateConfig::prompt_lookup)).
    pub drafted_tokens: u64,
    /// Accepted draft tokens. Each saved its request a forward pass.
    pub accepted_tokens: u64,
    /// Prompt tokens of the requests that have begun to run.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_prompt_tokens: u64,
    /// Preemptions: a request gave its blocks to another and was recomputed later.
    pub preemptions: u64,
    /// Requests that ended with [`FinishReason::Stop`](crate::FinishReason::Stop).
    pub stopped: u64,
    /// Requests that ended with [`FinishReason::Length`](crate::FinishReason::Length).
    pub length_limited: u64,
    /// Requests that ended with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub cancelled: u64,
    /// Requests that ended with [`FinishReason::Error`](crate::FinishReason::Error), with refused ones.
    pub failed: u64,
}

impl ModelStats {
    /// Mean number of tokens in a forward pass.
    pub fn tokens_per_pass(&self) -> f64 {
        if self.passes == 0 { 0.0 } else { self.batched_tokens as f64 / self.passes as f64 }
    }
}

/// Measurements of one operation: a stream, or a whole `classify`, `score` or `batch_generate` call. Durations
/// serialize as seconds.
///
/// ```
/// use tokenflow::GenerateMetrics;
/// let mut metrics = GenerateMetrics::default();
/// metrics.time_to_first_token = std::time::Duration::from_millis(12);
/// assert_eq!(serde_json::to_value(metrics).unwrap()["time_to_first_token"], 0.012);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GenerateMetrics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens returned.
    pub generated_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cached_prompt_tokens: usize,
    /// Draft tokens of speculative decoding ([`prompt_lookup`](crate::GenerateConfig::prompt_lookup)).
    pub drafted_tokens: usize,
    /// Accepted draft tokens. Each saved a forward pass.
    pub accepted_tokens: usize,
    /// From the call to the first forward pass, with tokenizing.
    #[serde(with = "crate::serde_seconds")]
    pub queue_duration: Duration,
    /// From the first forward pass to the first sampled token.
    #[serde(with = "crate::serde_seconds")]
    pub prefill_duration: Duration,
    /// From the first sampled token to the last.
    #[serde(with = "crate::serde_seconds")]
    pub decode_duration: Duration,
    /// From the call to the end.
    #[serde(with = "crate::serde_seconds")]
    pub total_duration: Duration,
    /// From the call to the first sampled token.
    #[serde(with = "crate::serde_seconds")]
    pub time_to_first_token: Duration,
    /// Computed prompt tokens per second of `prefill_duration`.
    pub prefill_tokens_per_sec: f64,
    /// Tokens after the first per second of `decode_duration`.
    pub decode_tokens_per_sec: f64,
    /// The most bytes the model has held so far: weights and used KV cache.
    pub peak_memory_bytes: usize,
    /// Bytes the model held at the end of the operation: weights and used KV cache.
    pub active_memory_bytes: usize,
}

impl GenerateMetrics {
    /// The metrics of a call that ran `parts` together for `total_duration`: counts are sums, durations are the
    /// longest, the time to the first token is the shortest.
    pub(crate) fn of_many(parts: &[Self], total_duration: Duration) -> Self {
        let sum = |count: fn(&Self) -> usize| parts.iter().map(count).sum::<usize>();
        let slowest = |of: fn(&Self) -> Duration| parts.iter().map(of).max().unwrap_or_default();
        let prefill_duration = slowest(|part| part.prefill_duration);
        let decode_duration = slowest(|part| part.decode_duration);
        let prompt_tokens = sum(|part| part.prompt_tokens);
        let cached_prompt_tokens = sum(|part| part.cached_prompt_tokens);
        Self {
            prompt_tokens,
            cached_prompt_tokens,
            generated_tokens: sum(|part| part.generated_tokens),
            drafted_tokens: sum(|part| part.drafted_tokens),
            accepted_tokens: sum(|part| part.accepted_tokens),
            queue_duration: slowest(|part| part.queue_duration),
            prefill_duration,
            decode_duration,
            total_duration,
            time_to_first_token: parts.iter().map(|part| part.time_to_first_token).min().unwrap_or_default(),
            prefill_tokens_per_sec: tokens_per_sec(prompt_tokens - cached_prompt_tokens, prefill_duration),
            decode_tokens_per_sec: tokens_per_sec(sum(|part| part.generated_tokens.saturating_sub(1)), decode_duration),
            peak_memory_bytes: parts.iter().map(|part| part.peak_memory_bytes).max().unwrap_or_default(),
            active_memory_bytes: parts.last().map_or(0, |part| part.active_memory_bytes),
        }
    }
}

/// Tokens per second; 0 for a duration of 0.
pub(crate) fn tokens_per_sec(tokens: usize, duration: Duration) -> f64 {
    if duration.is_zero() { 0.0 } else { tokens as f64 / duration.as_secs_f64() }
}
