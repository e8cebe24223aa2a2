use std::{fmt, path::PathBuf, sync::Arc};

use super::setters;
use crate::{Error, InstructionSet, Result};

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
    /// An adapter directory of PEFT or MLX-LM, for all requests that name no
    /// [`adapter`](crate::GenerateConfig::adapter).
    pub adapter_path: Option<PathBuf>,
    /// Bytes the keys and values of all sequences may take. `None`: 1 GiB, or what one sequence of
    /// an explicit [`context_len`](Self::context_len) needs if that is more. Memory that no
    /// sequence has used yet is reserved but not resident.
    pub kv_cache_bytes: Option<usize>,
    /// How keys and values are stored. `None`: in 16 bits ([`F16`](KvCacheType::F16)) beside the quantised
    /// weights of a GGUF file or of [`quantize`](Self::quantize) and beside activations of
    /// [16 bits](Self::activation_type), else with the precision of the computation, so that
    /// logits lose none.
    pub kv_cache_type: Option<KvCacheType>,
    /// Quantises the matrices of a checkpoint that is not quantised yet, as they are loaded. `None`: they stay as
    /// they are.
    pub quantize: Option<Quantize>,
    /// What activations are as they meet matrices of bfloat16 on the CPU.
    pub activation_type: ActivationType,
    /// Is told how far the model is loaded.
    pub progress: Option<ProgressFn>,
    /// Requests that may wait for their turn (512), beside those that could run at once; beyond them is
    /// [`Error::Overloaded`].
    pub queue_limit: usize,
    /// Tokens of prompts that one forward pass computes at most (512). Beside running streams it computes
    /// only as many as make their steps not much more than twice as long.
    pub max_batched_tokens: usize,
    /// Tokens whose keys and values are kept for later requests with the same beginning, while no
    /// request holds them. `None`: all that an explicit [`kv_cache_bytes`](Self::kv_cache_bytes) holds,
    /// else as many as one sequence may hold. 0 keeps none.
    pub prefix_cache_tokens: Option<usize>,
    /// Events a stream buffers before its sequence pauses for its reader (64).
    pub stream_buffer: usize,
    /// A Jinja chat template in place of the model's own. One that is none is [`Error::InvalidConfig`]; a model whose
    /// own is none loads all the same, and [`chat`](crate::TextModel::chat) says why it cannot be used.
    pub chat_template: Option<String>,
    /// Threads that compute on the CPU; `None`: one on each core. They are the model's own, spin while there is a
    /// forward pass, and sleep while there is none. What a model answers does not depend on their number.
    pub threads: Option<usize>,
    /// What kernels run on where a model is on the CPU; `None`: the best that the machine
    /// [has](InstructionSet::available). Answers do not depend on it: it is for tests, and to find out how fast others
    /// are.
    pub instruction_set: Option<InstructionSet>,
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
            kv_cache_type: None,
            quantize: None,
            activation_type: ActivationType::F32,
            progress: None,
            queue_limit: 512,
            max_batched_tokens: 512,
            prefix_cache_tokens: None,
            stream_buffer: 64,
            chat_template: None,
            threads: None,
            instruction_set: None,
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
        /// Applies an adapter to all requests that name none.
        adapter_path: impl Into<PathBuf> => Some(adapter_path.into());
        /// Limits the memory of the key/value cache.
        kv_cache_bytes: usize => Some(kv_cache_bytes);
        /// Sets how keys and values are stored.
        kv_cache_type: KvCacheType => Some(kv_cache_type);
        /// Quantises the weights as they are loaded.
        quantize: Quantize => Some(quantize);
        /// Sets what activations are as they meet matrices of bfloat16.
        activation_type: ActivationType => activation_type;
        /// Sets how many requests may wait.
        queue_limit: usize => queue_limit;
        /// Limits how many tokens of prompts one pass computes.
        max_batched_tokens: usize => max_batched_tokens;
        /// Sets how many tokens are kept for later requests.
        prefix_cache_tokens: usize => Some(prefix_cache_tokens);
        /// Sets how many events a stream buffers.
        stream_buffer: usize => stream_buffer;
        /// Replaces the model's chat template.
        chat_template: impl Into<String> => Some(chat_template.into());
        /// Sets how many threads compute on the CPU.
        threads: usize => Some(threads);
        /// Sets what kernels run on.
        instruction_set: InstructionSet => Some(instruction_set);
    }

    /// Calls `progress` as the model is loaded, on the thread that loads it: whenever a layer is there.
    ///
    /// ```
    /// use tokenflow::LoadConfig;
    /// let config = LoadConfig::new().progress(|at| eprintln!("{} of {}", at.layers, at.total_layers));
    /// ```
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.progress = Some(ProgressFn(Arc::new(progress)));
        self
    }

    /// Refuses values that no model could honour.
    pub(crate) fn validate(&self) -> Result<()> {
        let positive = [
            ("context_len", self.context_len),
            ("parallel_slots", self.parallel_slots),
            ("kv_cache_bytes", self.kv_cache_bytes),
            ("queue_limit", Some(self.queue_limit)),
            ("max_batched_tokens", Some(self.max_batched_tokens)),
            ("stream_buffer", Some(self.stream_buffer)),
            ("threads", self.threads),
        ];
        for (field, value) in positive {
            if value == Some(0) {
                return Err(Error::config(field, "0; at least 1 is needed"));
            }
        }
        let bounded = [
            ("queue_limit", self.queue_limit, MAX_CHANNEL),
            ("stream_buffer", self.stream_buffer, MAX_CHANNEL),
            ("threads", self.threads.unwrap_or(1), MAX_THREADS),
        ];
        for (field, value, greatest) in bounded {
            if value > greatest {
                return Err(Error::config(field, format!("{value} is more than {greatest}")));
            }
        }
        Ok(())
    }
}

/// How far a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Layers that are loaded.
    pub layers: usize,
    /// Layers the model has.
    pub total_layers: usize,
}

/// What [`LoadConfig::progress`] calls.
#[derive(Clone)]
pub struct ProgressFn(Arc<dyn Fn(LoadProgress) + Send + Sync>);

impl ProgressFn {
    pub(crate) fn call(&self, layers: usize, total_layers: usize) {
        (self.0)(LoadProgress { layers, total_layers });
    }
}

impl fmt::Debug for ProgressFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressFn")
    }
}

/// To what weights are quantised as they are loaded.
///
/// Each 32 weights of a row that follow each other get a scale and an offset of 16 bits each, and the activations they
/// are multiplied with are rounded to 8 bits, as with the weights of GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantize {
    /// 8 bits: half the memory of 16-bit weights, and hardly a difference.
    Int8,
    /// 4 bits in the layers, 8 in the embedding and the output matrix: a third of the memory.
    Int4,
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvCacheType {
    /// 32 bits.
    F32,
    /// 16 bits, 11 of them for the number: what is beyond ±65,504 is stored as that.
    F16,
    /// 16 bits, 8 of them for the number.
    Bf16,
    /// 8 bits, and 16 more for the scale of all that a head has of a token: half the memory of 16 bits, so that long
    /// contexts are read twice as fast. On the CPU only.
    Int8,
}

/// What activations are as they meet matrices of bfloat16; sums have 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ActivationType {
    /// As they are, in 32 bits: logits are those of exact arithmetic to about 1e-5.
    #[default]
    F32,
    /// Rounded to bfloat16, as engines that run in bfloat16 have them: twice as fast with AVX-512 BF16.
    Bf16,
}

/// The most entries a queue may have.
const MAX_CHANNEL: usize = 1 << 20;
/// The most threads that compute together.
const MAX_THREADS: usize = 1 << 10;
