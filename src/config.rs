use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// Writes a builder method for each field.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $arg:ty => $value:expr;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $arg) -> Self {
            self.$name = $value;
            self
        })*
    };
}

/// How a model is loaded. `LoadConfig::new()` and the builder methods.
///
/// ```
/// let config = tokenflow::LoadConfig::new().backend("cpu").context_len(2048).parallel_slots(8);
/// assert_eq!(config.context_len, Some(2048));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadConfig {
    /// The backend's name; `None` picks the best available one.
    pub backend: Option<String>,
    /// Tokens a sequence may hold, prompt and answer together. `None`: what the model was trained
    /// for, as far as [`kv_cache_bytes`](Self::kv_cache_bytes) holds it.
    pub context_len: Option<usize>,
    /// Layers on the device; `None`: all, `Some(0)`: none, which runs the model on the CPU.
    pub gpu_layers: Option<usize>,
    /// Sequences decoded together; `None`: as many as the key/value cache holds.
    pub parallel_slots: Option<usize>,
    /// A PEFT adapter directory, applied at load.
    pub adapter_path: Option<PathBuf>,
    /// Bytes the keys and values of all sequences may take. `None`: 1 GiB, or what one sequence of
    /// an explicit [`context_len`](Self::context_len) needs if that is more. Memory that no
    /// sequence has used yet is reserved but not resident.
    pub kv_cache_bytes: Option<usize>,
    /// Requests that may wait for their turn (512); beyond them is [`Error::Overloaded`].
    pub queue_limit: usize,
    /// Events a stream buffers before its sequence pauses for its reader (64).
    pub stream_buffer: usize,
    /// A Jinja chat template in place of the model's own.
    pub chat_template: Option<String>,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            backend: None,
            context_len: None,
            gpu_layers: None,
            parallel_slots: None,
            adapter_path: None,
            kv_cache_bytes: None,
            queue_limit: 512,
            stream_buffer: 64,
            chat_template: None,
        }
    }
}

impl LoadConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Asks for a backend by name.
        backend: impl Into<String> => Some(backend.into());
        /// Limits the tokens a sequence may hold.
        context_len: usize => Some(context_len);
        /// Sets how many layers run on the device.
        gpu_layers: usize => Some(gpu_layers);
        /// Limits how many sequences are decoded together.
        parallel_slots: usize => Some(parallel_slots);
        /// Applies a PEFT adapter.
        adapter_path: impl Into<PathBuf> => Some(adapter_path.into());
        /// Limits the memory of the key/value cache.
        kv_cache_bytes: usize => Some(kv_cache_bytes);
        /// Sets how many requests may wait.
        queue_limit: usize => queue_limit;
        /// Sets how many events a stream buffers.
        stream_buffer: usize => stream_buffer;
        /// Replaces the model's chat template.
        chat_template: impl Into<String> => Some(chat_template.into());
    }

    /// Refuses values that no model could honour.
    pub(crate) fn validate(&self) -> Result<()> {
        let positive = [
            ("context_len", self.context_len),
            ("parallel_slots", self.parallel_slots),
            ("kv_cache_bytes", self.kv_cache_bytes),
            ("queue_limit", Some(self.queue_limit)),
            ("stream_buffer", Some(self.stream_buffer)),
        ];
        for (field, value) in positive {
            if value == Some(0) {
                return Err(Error::config(field, "0; at least 1 is needed"));
            }
        }
        for (field, value) in [("queue_limit", self.queue_limit), ("stream_buffer", self.stream_buffer)] {
            if value > MAX_CHANNEL {
                return Err(Error::config(field, format!("{value} is more than {MAX_CHANNEL}")));
            }
        }
        Ok(())
    }
}

/// The most entries a queue may have.
const MAX_CHANNEL: usize = 1 << 20;

/// How an answer is generated. `GenerateConfig::new()` and the builder methods.
///
/// ```
/// use tokenflow::GenerateConfig;
/// let config = GenerateConfig::new().max_tokens(64).temperature(0.7).top_p(0.9).seed(7);
/// assert_eq!(config.max_tokens, 64);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerateConfig {
    /// Tokens to generate at most (256). A sequence also ends when its context is full.
    pub max_tokens: usize,
    /// Divides the logits before sampling. 0, the default, takes the most likely token.
    pub temperature: f32,
    /// Samples among this many of the most likely tokens; 0 is off.
    pub top_k: usize,
    /// Samples among the fewest tokens whose probabilities sum to this; 0 and 1 are off.
    pub top_p: f32,
    /// Samples among tokens at least this likely, relative to the most likely one; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that are already in the prompt or
    /// the answer ([CTRL](https://arxiv.org/abs/1909.05858), section 4.1); 0 and 1 are off.
    pub repeat_penalty: f32,
    /// Ids that end the answer, besides the model's own end-of-text tokens. They are not returned.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the answer. They are never part of the text that is returned.
    pub stop: Vec<String>,
    /// The same seed gives the same tokens. `None` seeds each request differently.
    pub seed: Option<u64>,
    /// Whether [`classify`](crate::TextModel::classify) returns the logits.
    pub return_logits: bool,
    /// Returns the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Ends the request when it is cancelled.
    pub cancellation: Option<CancellationToken>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 0.0,
            min_p: 0.0,
            repeat_penalty: 0.0,
            stop_tokens: Vec::new(),
            stop: Vec::new(),
            seed: None,
            return_logits: false,
            logprobs: None,
            cancellation: None,
        }
    }
}

impl GenerateConfig {
    /// The defaults: greedy, 256 tokens.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets how many tokens to generate at most.
        max_tokens: usize => max_tokens;
        /// Sets the sampling temperature.
        temperature: f32 => temperature;
        /// Keeps the most likely tokens only.
        top_k: usize => top_k;
        /// Keeps the nucleus of the distribution only.
        top_p: f32 => top_p;
        /// Keeps tokens that are likely enough relative to the most likely one.
        min_p: f32 => min_p;
        /// Penalises tokens that occurred before.
        repeat_penalty: f32 => repeat_penalty;
        /// Adds ids that end the answer.
        stop_tokens: Vec<u32> => stop_tokens;
        /// Adds strings that end the answer.
        stop: Vec<String> => stop;
        /// Fixes the randomness.
        seed: u64 => Some(seed);
        /// Asks `classify` for the logits.
        return_logits: bool => return_logits;
        /// Asks for log-probabilities.
        logprobs: usize => Some(logprobs);
        /// Ends the request when `cancellation` is cancelled.
        cancellation: CancellationToken => Some(cancellation);
    }

    /// Refuses values that have no meaning.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.max_tokens == 0 {
            return Err(Error::config("max_tokens", "0; at least 1 is needed"));
        }
        within("temperature", self.temperature, f32::MAX)?;
        within("top_p", self.top_p, 1.0)?;
        within("min_p", self.min_p, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, f32::MAX)?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::config("stop", "an empty string would stop everything"));
        }
        if let Some(n) = self.logprobs.filter(|&n| n > MAX_LOGPROBS) {
            return Err(Error::config("logprobs", format!("{n} is more than {MAX_LOGPROBS}")));
        }
        Ok(())
    }
}

/// The most alternatives [`GenerateConfig::logprobs`] may ask for.
const MAX_LOGPROBS: usize = 128;

fn within(field: &'static str, value: f32, max: f32) -> Result<()> {
    if (0.0..=max).contains(&value) {
        Ok(())
    } else if max == f32::MAX {
        Err(Error::config(field, format!("{value} is not a finite number of at least 0")))
    } else {
        Err(Error::config(field, format!("{value} is not between 0 and {max}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_without_meaning_are_refused_by_name() {
        let config = GenerateConfig::new;
        for (bad, name) in [
            (config().temperature(f32::NAN), "temperature"),
            (config().temperature(-1.0), "temperature"),
            (config().temperature(f32::INFINITY), "temperature"),
            (config().top_p(1.5), "top_p"),
            (config().top_p(f32::NAN), "top_p"),
            (config().min_p(-0.1), "min_p"),
            (config().repeat_penalty(f32::NAN), "repeat_penalty"),
            (config().max_tokens(0), "max_tokens"),
            (config().stop(vec![String::new()]), "stop"),
            (config().logprobs(100_000), "logprobs"),
        ] {
            match bad.validate() {
                Err(Error::InvalidConfig { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        config().temperature(0.7).top_p(1.0).min_p(0.0).repeat_penalty(1.0).validate().unwrap();
    }
}
