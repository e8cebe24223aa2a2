//! Settings for loading a model.

use std::{fmt, path::PathBuf, sync::Arc};

use super::setters;
use crate::{Error, InstructionSet, Result};

/// Settings for loading a model: `LoadConfig::new()` and the builder methods.
///
/// ```
/// let config = tokenflow::LoadConfig::new().backend("cpu").context_len(2048).parallel_slots(8);
/// assert_eq!(config.context_len, Some(2048));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadConfig {
    /// Name of the backend. `None`: the best available one.
    pub backend: Option<String>,
    /// Tokens a sequence may hold, prompt and answer together. `None`: the context length the model was trained for, as
    /// far as it fits into [`kv_cache_bytes`](Self::kv_cache_bytes).
    pub context_len: Option<usize>,
    /// Layers on the device. `None`: all. `Some(0)`: none, so that the model runs on the CPU.
    pub gpu_layers: Option<usize>,
    /// Sequences decoded together. `None`: as many as the KV cache holds.
    pub parallel_slots: Option<usize>,
    /// An adapter directory of PEFT or MLX-LM, for all requests that name no
    /// [`adapter`](crate::GenerateConfig::adapter).
    pub adapter_path: Option<PathBuf>,
    /// Bytes of the KV cache, shared by all sequences. `None`: 1 GiB, or enough for one sequence of an explicit
    /// [`context_len`](Self::context_len) if that is more. Memory that no sequence has used yet is reserved but not
    /// resident.
    pub kv_cache_bytes: Option<usize>,
    /// Element type of the KV cache. `None`: [`F16`](KvCacheType::F16) with quantized weights (of a GGUF file, or by
    /// [`quantize`](Self::quantize)) and with [bfloat16 activations](Self::activation_type), else the precision of the
    /// computation, so that logits lose none. [`Int8`](KvCacheType::Int8) halves the memory of 16 bits.
    pub kv_cache_type: Option<KvCacheType>,
    /// Quantizes the matrices of an unquantized checkpoint while it is loaded. `None`: they stay as they are.
    pub quantize: Option<Quantize>,
    /// Type of activations in products with bfloat16 matrices on the CPU.
    pub activation_type: ActivationType,
    /// Callback for the progress of loading.
    pub progress: Option<ProgressFn>,
    /// Streams that may wait (512), beside the ones that run or could run at once. Further ones are refused with
    /// [`Error::Overloaded`].
    pub queue_limit: usize,
    /// Prompt tokens in one forward pass, at most (512). Chunked prefill: beside running streams a pass takes fewer, so
    /// that a long prompt at most about doubles their inter-token latency.
    pub max_batched_tokens: usize,
    /// Tokens in the prefix cache: keys and values that no running request holds, kept for later requests with the same
    /// prefix. `None`: all of an explicit [`kv_cache_bytes`](Self::kv_cache_bytes), else as many as one sequence may
    /// hold. 0 keeps none.
    pub prefix_cache_tokens: Option<usize>,
    /// Steps that a stream buffers (64). Backpressure: with a full buffer the request pauses until its reader reads.
    pub stream_buffer: usize,
    /// Jinja chat template in place of the model's own. An invalid one is [`Error::InvalidConfig`]. A model whose own
    /// template is invalid loads all the same; [`chat`](crate::TextModel::chat) then says why it cannot be used.
    pub chat_template: Option<String>,
    /// Threads that compute on the CPU. `None`: one on each physical core. They belong to the model, spin during a
    /// forward pass and sleep otherwise. Answers do not depend on their number.
    pub threads: Option<usize>,
    /// Instruction set of the CPU kernels. `None`: the best one [available](InstructionSet::available). Answers do not
    /// depend on it; it is for tests and comparisons of speed.
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
        /// Limits the memory of the KV cache.
        kv_cache_bytes: usize => Some(kv_cache_bytes);
        /// Sets the element type of the KV cache.
        kv_cache_type: KvCacheType => Some(kv_cache_type);
        /// Quantizes the weights while they are loaded.
        quantize: Quantize => Some(quantize);
        /// Sets the type of activations in products with bfloat16 matrices.
        activation_type: ActivationType => activation_type;
        /// Sets how many streams may wait.
        queue_limit: usize => queue_limit;
        /// Limits the prompt tokens in one forward pass.
        max_batched_tokens: usize => max_batched_tokens;
        /// Sets the size of the prefix cache in tokens.
        prefix_cache_tokens: usize => Some(prefix_cache_tokens);
        /// Sets how many steps a stream buffers.
        stream_buffer: usize => stream_buffer;
        /// Replaces the model's chat template.
        chat_template: impl Into<String> => Some(chat_template.into());
        /// Sets how many threads compute on the CPU.
        threads: usize => Some(threads);
        /// Sets the instruction set of the CPU kernels.
        instruction_set: InstructionSet => Some(instruction_set);
    }

    /// Calls `progress` after each loaded layer, on the thread that loads the model.
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

    /// Refuses values that no model could honor.
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

/// Progress of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Layers loaded so far.
    pub layers: usize,
    /// Layers of the model.
    pub total_layers: usize,
}

/// The callback of [`LoadConfig::progress`].
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

/// Quantization of weights while they are loaded: blocks of 32 weights of a row with a 16-bit scale and a 16-bit
/// offset. Activations in products with them are rounded to 8 bits, as with the weights of GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantize {
    /// 8 bits: half the memory of 16-bit weights, and hardly a difference.
    Int8,
    /// 4 bits in the layers, 8 in the embedding and the output matrix: a third of the memory.
    Int4,
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvCacheType {
    /// 32 bits.
    F32,
    /// 16 bits, 11 of them significant; values beyond ±65,504 are clamped.
    F16,
    /// 16 bits, 8 of them significant.
    Bf16,
    /// 8 bits, with a 16-bit scale for each head and token: half the memory of 16 bits, so that long contexts are read
    /// twice as fast. CPU only.
    Int8,
}

/// Type of activations in products with bfloat16 matrices. Sums have 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ActivationType {
    /// 32 bits, not rounded: logits are within about 1e-5 of exact arithmetic.
    #[default]
    F32,
    /// Rounded to bfloat16, as in engines that compute in bfloat16: twice as fast with AVX-512 BF16.
    Bf16,
}

/// The most entries a queue may have.
const MAX_CHANNEL: usize = 1 << 20;
/// The most threads of a model.
const MAX_THREADS: usize = 1 << 10;
