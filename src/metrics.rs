//! Descriptions and measurements: what a model is, what it does, and what one request took.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a model is.
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
    /// Bits per weight of most of the weights; 0 if they are not quantised.
    pub quant_bits: u32,
    /// Weights that share a scale; 0 if they are not quantised.
    pub quant_group: u32,
    /// Tokens a sequence may hold, prompt and answer together.
    pub context_len: usize,
}

/// What a model does and has done: gauges of this moment, and counters since it was loaded. For serde durations are
/// seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelStats {
    /// Requests that share forward passes now, those that pause for their reader among them.
    pub running: usize,
    /// Requests that wait to run: queued, being tokenized, or preempted.
    pub waiting: usize,
    /// Memory of the weights, those of adapters among them.
    pub weight_bytes: usize,
    /// Memory that keys and values may take.
    pub kv_capacity_bytes: usize,
    /// Tokens whose keys and values that holds.
    pub kv_capacity_tokens: usize,
    /// Memory of the keys and values of running requests.
    pub kv_used_bytes: usize,
    /// Memory of the keys and values kept for later requests with the same beginning.
    pub kv_cached_bytes: usize,
    /// Forward passes.
    pub passes: u64,
    /// Time spent in forward passes.
    #[serde(with = "crate::serde_seconds")]
    pub pass_duration: Duration,
    /// Tokens computed in them: of prompts, of answers, of drafts, and again after a preemption.
    pub batched_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Tokens guessed by [`prompt_lookup`](crate::GenerateConfig::prompt_lookup).
    pub drafted_tokens: u64,
    /// Those of them that were right, each of which saved a request a pass.
    pub accepted_tokens: u64,
    /// Tokens of the prompts that began to run.
    pub prompt_tokens: u64,
    /// Tokens of those prompts whose keys and values were already there.
    pub cached_prompt_tokens: u64,
    /// How often a request gave its memory to another, to be computed again later.
    pub preemptions: u64,
    /// Requests that ended with [`FinishReason::Stop`](crate::FinishReason::Stop).
    pub stopped: u64,
    /// Requests that ended with [`FinishReason::Length`](crate::FinishReason::Length).
    pub length_limited: u64,
    /// Requests that ended with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub cancelled: u64,
    /// Requests that ended with [`FinishReason::Error`](crate::FinishReason::Error), refused ones among
    /// them.
    pub failed: u64,
}

impl ModelStats {
    /// Tokens that a forward pass computed on average.
    pub fn tokens_per_pass(&self) -> f64 {
        if self.passes == 0 { 0.0 } else { self.batched_tokens as f64 / self.passes as f64 }
    }
}

/// Figures of one operation: a stream, or a whole `classify` or `batch_generate` call. For serde durations are seconds.
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
    /// Tokens of the prompt whose keys and values were already there.
    pub cached_prompt_tokens: usize,
    /// Tokens guessed by [`prompt_lookup`](crate::GenerateConfig::prompt_lookup).
    pub drafted_tokens: usize,
    /// Those of them that were right, each of which saved a forward pass.
    pub accepted_tokens: usize,
    /// From the call until the first forward pass, tokenizing included.
    #[serde(with = "crate::serde_seconds")]
    pub queue_duration: Duration,
    /// From the first forward pass until the first token was sampled.
    #[serde(with = "crate::serde_seconds")]
    pub prefill_duration: Duration,
    /// From the first token until the last.
    #[serde(with = "crate::serde_seconds")]
    pub decode_duration: Duration,
    /// From the call until the end.
    #[serde(with = "crate::serde_seconds")]
    pub total_duration: Duration,
    /// From the call until the first token was sampled.
    #[serde(with = "crate::serde_seconds")]
    pub time_to_first_token: Duration,
    /// Computed prompt tokens per second of `prefill_duration`.
    pub prefill_tokens_per_sec: f64,
    /// Tokens after the first per second of `decode_duration`.
    pub decode_tokens_per_sec: f64,
    /// The most memory the model held so far: weights, keys and values.
    pub peak_memory_bytes: usize,
    /// The memory the model held at the end of the operation: weights, keys and values.
    pub active_memory_bytes: usize,
}

impl GenerateMetrics {
    /// The figures of a call that ran `parts` together for `total_duration`: counts are sums,
    /// durations are those of the slowest part, the first token is the earliest.
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

/// Tokens per second; 0 if there is nothing to divide.
pub(crate) fn tokens_per_sec(tokens: usize, duration: Duration) -> f64 {
    if duration.is_zero() { 0.0 } else { tokens as f64 / duration.as_secs_f64() }
}
