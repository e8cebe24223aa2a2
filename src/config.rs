use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::{Error, InstructionSet, Result, kernels::Isa};

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

pub(crate) use setters;

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
    /// An adapter directory of PEFT or MLX-LM, for all requests that name no [`adapter`](GenerateConfig::adapter).
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
    /// A Jinja chat template in place of the model's own. One that is none is [`Error::InvalidConfig`]; a model whose own
    /// is none loads all the same, and [`chat`](crate::TextModel::chat) says why it cannot be used.
    pub chat_template: Option<String>,
    /// Threads that compute on the CPU; `None`: one on each core. They are the model's own, spin while there is a forward
    /// pass, and sleep while there is none. What a model answers does not depend on their number.
    pub threads: Option<usize>,
    /// What kernels run on where a model is on the CPU; `None`: the best that the machine
    /// [has](InstructionSet::available). Answers do not depend on it: it is for tests, and to find out how fast others are.
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

    /// What kernels run on.
    pub(crate) fn isa(&self) -> Result<Isa> {
        self.instruction_set.map_or_else(|| Ok(Isa::detect()), |set| set.among(&Isa::available()))
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

/// How an answer is generated. `GenerateConfig::new()` and the builder methods.
///
/// ```
/// use tokenflow::GenerateConfig;
/// let config = GenerateConfig::new().max_tokens(64).temperature(0.7).top_p(0.9).seed(7);
/// assert_eq!(config.max_tokens, 64);
/// ```
///
/// Builder methods of lists and maps add to what is there, those of single values replace it. The fields are public: assign
/// one to begin a list anew.
///
/// ```
/// use tokenflow::GenerateConfig;
/// let mut config = GenerateConfig::new().stop(vec!["\n".into()]).stop(vec!["User:".into()]);
/// assert_eq!(config.stop, ["\n", "User:"]);
/// config.stop = vec!["END".into()];
/// ```
///
/// # Which calls heed what
/// | | [`generate`](crate::TextModel::generate), [`batch_generate`](crate::TextModel::batch_generate) | [`chat`](crate::TextModel::chat) | [`classify`](crate::TextModel::classify) | [`score`](crate::TextModel::score) |
/// |---|---|---|---|---|
/// | `cancellation`, `deadline`, `priority`, `cache_salt`, `adapter`, `logprobs` | yes | yes | yes | yes |
/// | `temperature`, `top_k`, `top_p`, `min_p`, `seed`, penalties, `logit_bias` | yes | yes | yes | no effect |
/// | `max_tokens`, `prompt_lookup` | yes | yes | no effect | no effect |
/// | `stop`, `stop_tokens`, `min_tokens`, `ignore_eos` | yes | yes | refused | refused |
/// | `template_vars`, `continue_final_message` | no effect | yes | no effect | no effect |
/// | `return_logits` | refused | refused | yes | refused |
///
/// What is refused is answered with [`Error::InvalidConfig`], and so is a value that has no meaning, in any call.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerateConfig {
    /// Tokens to generate at most (256). A sequence also ends when its context is full.
    pub max_tokens: usize,
    /// Tokens to generate at least (0), as far as the context holds them: before that many neither end-of-text tokens nor
    /// [`stop_tokens`](Self::stop_tokens) can be sampled, and no [`stop`](Self::stop) string ends the answer.
    pub min_tokens: usize,
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
    /// Subtracted from a token's logit for each time the answer has it; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit once the answer has it; 0 is off.
    pub presence_penalty: f32,
    /// How many tokens the three penalties look back on, the latest of prompt and answer together. 0, the default, is all of
    /// them, as in transformers and vLLM; llama.cpp has 64. Without a penalty it has no effect.
    ///
    /// `repeat_penalty(1.1).penalty_window(64)` keeps small models from repeating themselves without keeping them from
    /// the words of a long prompt.
    pub penalty_window: usize,
    /// Added to the logits of these ids. Negative infinity bans a token.
    pub logit_bias: HashMap<u32, f32>,
    /// Ids that end the answer, besides the model's own end-of-text tokens. They are not returned.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the answer, of 4 MiB in all at most. They are never part of the text that is returned.
    pub stop: Vec<String>,
    /// Whether the answer goes on past the model's own end-of-text tokens (`false`). They are tokens of the answer then, as
    /// any other; special ones have no text. [`stop_tokens`](Self::stop_tokens) and [`stop`](Self::stop) still end it.
    pub ignore_eos: bool,
    /// The same seed gives the same tokens, so equal prompts of a batch equal answers, unless
    /// [`seed_per_prompt`](Self::seed_per_prompt) is set. `None` seeds each request and each prompt differently.
    pub seed: Option<u64>,
    /// Whether the prompt at index `i` of [`batch_generate`](crate::TextModel::batch_generate) and
    /// [`classify`](crate::TextModel::classify) has the seed `seed + i` (`false`), so that equal prompts have different
    /// answers: what [`generate`](crate::TextModel::generate) gives with that seed. A single prompt is at index 0.
    pub seed_per_prompt: bool,
    /// Whether [`classify`](crate::TextModel::classify) returns the logits.
    pub return_logits: bool,
    /// Returns the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Ends the request when it is cancelled.
    pub cancellation: Option<CancellationToken>,
    /// When the request is given up with [`Error::DeadlineExceeded`], wherever it is by then.
    pub deadline: Option<Deadline>,
    /// Waiting requests of greater priority start first; 0 is usual. Those of equal priority start as
    /// they came, and none is passed over for ever. When memory runs out, those of least priority wait.
    pub priority: i32,
    /// Prompts share cached beginnings only with requests of the same salt, so that no tenant can tell
    /// from the time to the first token what another one has asked.
    pub cache_salt: Option<String>,
    /// The adapter that changes the model for this request, by the name that it was
    /// [loaded](crate::TextModel::load_adapter) under. `None`: that of [`LoadConfig::adapter_path`] or the one that was
    /// [trained](crate::TrainableModel::train), if there is one.
    pub adapter: Option<String>,
    /// Whether no adapter changes the model for this request, not even the one of requests that name none (`false`).
    ///
    /// ```
    /// use tokenflow::GenerateConfig;
    /// let config = GenerateConfig::new().base_model(true);
    /// assert!(config.base_model);
    /// ```
    pub base_model: bool,
    /// Tokens guessed for each step of an answer, at most; 0, the default, is off.
    ///
    /// Where the last tokens came before, in the prompt or the answer, what followed them then is guessed to follow
    /// again, and all guesses are checked in one forward pass. The answer is the same to the bit, and takes fewer
    /// passes if it repeats much: summaries, edits, extraction, code. Guesses cost time, so as many are made as are
    /// worth it by how often they were right, and fewer beside many streams. 8 is a good start, 64 the most. [`accepted_tokens`](crate::GenerateMetrics::accepted_tokens) tells how
    /// many of the [`drafted_tokens`](crate::GenerateMetrics::drafted_tokens) were right.
    ///
    /// Guesses take what prompts leave of a pass ([`max_batched_tokens`](LoadConfig::max_batched_tokens)), and memory
    /// that nobody uses.
    pub prompt_lookup: usize,
    /// What [`chat`](crate::TextModel::chat) gives the model's chat template beside the messages: `tools`,
    /// `documents`, `enable_thinking`, `date_string` or whatever else the template reads. Nothing in them
    /// becomes a control token.
    ///
    /// ```
    /// use serde_json::json;
    /// use tokenflow::GenerateConfig;
    ///
    /// let tool = json!({"type": "function", "function": {
    ///     "name": "weather",
    ///     "description": "The weather in a city.",
    ///     "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    /// }});
    /// let config = GenerateConfig::new().template_var("tools", vec![tool]).template_var("enable_thinking", false);
    /// assert_eq!(config.template_vars["tools"][0]["function"]["name"], "weather");
    /// ```
    pub template_vars: Map<String, Value>,
    /// Whether [`chat`](crate::TextModel::chat) goes on with the last message in place of answering it (false): the
    /// prompt ends with the last message's content, and the answer is what follows it. As in transformers, space at the
    /// content's end stays unless the chat template trims it, and the content must be in what the template writes, or the
    /// request is [`Error::InvalidConfig`].
    ///
    /// ```
    /// use tokenflow::{GenerateConfig, Message};
    ///
    /// let turns = [Message::user("Name a prime."), Message::assistant("The smallest prime is")];
    /// let config = GenerateConfig::new().continue_final_message(true);
    /// # let _ = (turns, config);
    /// ```
    pub continue_final_message: bool,
}

/// When a request is given up.
///
/// ```
/// use std::time::{Duration, Instant};
/// use tokenflow::GenerateConfig;
/// let patient = GenerateConfig::new().deadline(Duration::from_secs(30)); // from each call on
/// let strict = GenerateConfig::new().deadline(Instant::now() + Duration::from_secs(30));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// That long after the call.
    After(Duration),
    /// At that time.
    At(Instant),
}

impl Deadline {
    /// The time it means for a request of `call`; `None` if that is beyond all times.
    pub(crate) fn at(self, call: Instant) -> Option<Instant> {
        match self {
            Self::After(duration) => call.checked_add(duration),
            Self::At(time) => Some(time),
        }
    }
}

impl From<Duration> for Deadline {
    fn from(duration: Duration) -> Self {
        Self::After(duration)
    }
}

impl From<Instant> for Deadline {
    fn from(time: Instant) -> Self {
        Self::At(time)
    }
}

impl From<tokio::time::Instant> for Deadline {
    fn from(time: tokio::time::Instant) -> Self {
        Self::At(time.into_std())
    }
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            min_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 0.0,
            min_p: 0.0,
            repeat_penalty: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 0,
            logit_bias: HashMap::new(),
            stop_tokens: Vec::new(),
            stop: Vec::new(),
            ignore_eos: false,
            seed: None,
            seed_per_prompt: false,
            return_logits: false,
            logprobs: None,
            cancellation: None,
            deadline: None,
            priority: 0,
            cache_salt: None,
            adapter: None,
            base_model: false,
            prompt_lookup: 0,
            template_vars: Map::new(),
            continue_final_message: false,
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
        /// Sets how many tokens to generate at least.
        min_tokens: usize => min_tokens;
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
        /// Penalises tokens by how often the answer has them.
        frequency_penalty: f32 => frequency_penalty;
        /// Penalises tokens that the answer has.
        presence_penalty: f32 => presence_penalty;
        /// Bounds how far penalties look back.
        penalty_window: usize => penalty_window;
        /// Goes on past the model's own end-of-text tokens.
        ignore_eos: bool => ignore_eos;
        /// Sets whether the model goes on with the last message of a chat.
        continue_final_message: bool => continue_final_message;
        /// Fixes the randomness.
        seed: u64 => Some(seed);
        /// Gives each prompt of a batch a seed of its own.
        ///
        /// ```no_run
        /// # async fn run(model: Box<dyn tokenflow::TextModel>) -> tokenflow::Result<()> {
        /// use tokenflow::GenerateConfig;
        ///
        /// let config = GenerateConfig::new().temperature(0.8).seed(7).seed_per_prompt(true);
        /// let takes = model.batch_generate(&["Once upon a time"; 3], config).await?; // seeds 7, 8 and 9
        /// # Ok(()) }
        /// ```
        seed_per_prompt: bool => seed_per_prompt;
        /// Asks `classify` for the logits.
        return_logits: bool => return_logits;
        /// Asks for log-probabilities.
        logprobs: usize => Some(logprobs);
        /// Ends the request when `cancellation` is cancelled.
        cancellation: CancellationToken => Some(cancellation);
        /// Gives the request up after a `Duration`, or at an `Instant`.
        deadline: impl Into<Deadline> => Some(deadline.into());
        /// Sets the priority.
        priority: i32 => priority;
        /// Keeps cached prompts apart from those of other salts.
        cache_salt: impl Into<String> => Some(cache_salt.into());
        /// Chooses an adapter.
        adapter: impl Into<String> => Some(adapter.into());
        /// Does without any adapter.
        base_model: bool => base_model;
        /// Guesses at most that many tokens of each step.
        ///
        /// ```
        /// use tokenflow::GenerateConfig;
        /// let config = GenerateConfig::new().prompt_lookup(8);
        /// assert_eq!(config.prompt_lookup, 8);
        /// ```
        prompt_lookup: usize => prompt_lookup;
    }

    /// Adds ids that end the answer.
    #[must_use]
    pub fn stop_tokens(mut self, stop_tokens: Vec<u32>) -> Self {
        self.stop_tokens.extend(stop_tokens);
        self
    }

    /// Adds strings that end the answer.
    #[must_use]
    pub fn stop(mut self, stop: Vec<String>) -> Self {
        self.stop.extend(stop);
        self
    }

    /// Adds to the logits of some ids. An id that has a bias already gets the new one.
    #[must_use]
    pub fn logit_bias(mut self, logit_bias: HashMap<u32, f32>) -> Self {
        self.logit_bias.extend(logit_bias);
        self
    }

    /// Adds variables of the chat template. One that is there already gets the new value.
    #[must_use]
    pub fn template_vars(mut self, template_vars: Map<String, Value>) -> Self {
        self.template_vars.extend(template_vars);
        self
    }

    /// Adds one variable of the chat template, as [`template_vars`](Self::template_vars) does.
    #[must_use]
    pub fn template_var(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template_vars.insert(name.into(), value.into());
        self
    }

    /// The config for the prompt at `index` of several.
    pub(crate) fn for_prompt(&self, index: usize) -> Self {
        let seed = self.seed.map(|seed| if self.seed_per_prompt { seed.wrapping_add(index as u64) } else { seed });
        Self { seed, ..self.clone() }
    }

    /// Refuses values that have no meaning.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.max_tokens == 0 {
            return Err(Error::config("max_tokens", "0; at least 1 is needed"));
        }
        if self.min_tokens > self.max_tokens {
            let reason = format!("{} is more than max_tokens = {}", self.min_tokens, self.max_tokens);
            return Err(Error::config("min_tokens", reason));
        }
        within("temperature", self.temperature, f32::MAX)?;
        within("top_p", self.top_p, 1.0)?;
        within("min_p", self.min_p, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, f32::MAX)?;
        for (field, value) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            if !value.is_finite() {
                return Err(Error::config(field, format!("{value} is not a finite number")));
            }
        }
        let unusable = |bias: &f32| bias.is_nan() || *bias == f32::INFINITY;
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| unusable(bias)) {
            let reason = format!("{bias} for token {id}; a finite number, or negative infinity, is needed");
            return Err(Error::config("logit_bias", reason));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::config("stop", "an empty string would stop everything"));
        }
        let stop_bytes = self.stop.iter().map(String::len).fold(0, usize::saturating_add);
        if stop_bytes > MAX_STOP_BYTES {
            return Err(Error::config("stop", format!("{stop_bytes} bytes in all are more than {MAX_STOP_BYTES}")));
        }
        if let Some(n) = self.logprobs.filter(|&n| n > MAX_LOGPROBS) {
            return Err(Error::config("logprobs", format!("{n} is more than {MAX_LOGPROBS}")));
        }
        if self.prompt_lookup > MAX_PROMPT_LOOKUP {
            let reason = format!("{} is more than {MAX_PROMPT_LOOKUP}", self.prompt_lookup);
            return Err(Error::config("prompt_lookup", reason));
        }
        check_adapter(self.adapter.as_deref(), self.base_model)?;
        if let Some(name) = TEMPLATE_NAMES.into_iter().find(|name| self.template_vars.contains_key(*name)) {
            return Err(Error::config("template_vars", format!("{name:?} is set by the model and the conversation")));
        }
        if self.template_vars.values().any(|value| nests_deeper(value, MAX_NESTING)) {
            return Err(Error::config("template_vars", format!("lists are nested more than {MAX_NESTING} deep")));
        }
        Ok(())
    }
}

/// Refuses a choice between adapters that is none.
pub(crate) fn check_adapter(adapter: Option<&str>, base_model: bool) -> Result<()> {
    match adapter {
        Some(name) if base_model => Err(Error::config("base_model", format!("true, beside the adapter {name:?}"))),
        Some(name) => check_adapter_name(name),
        None => Ok(()),
    }
}

/// Refuses what is no name.
pub(crate) fn check_adapter_name(name: &str) -> Result<()> {
    if name.is_empty() { Err(Error::config("adapter", "\"\" is no name")) } else { Ok(()) }
}

/// The most bytes that the strings of [`GenerateConfig::stop`] may have in all.
const MAX_STOP_BYTES: usize = 4 << 20;

/// The most alternatives [`GenerateConfig::logprobs`] may ask for.
const MAX_LOGPROBS: usize = 128;

/// The most tokens [`GenerateConfig::prompt_lookup`] may guess.
const MAX_PROMPT_LOOKUP: usize = 64;

/// Template variables that are not the caller's.
const TEMPLATE_NAMES: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];

/// How deep lists and objects may be nested in what a chat template is given.
pub(crate) const MAX_NESTING: usize = 64;

/// Whether lists and objects are nested in a value more than `limit` deep.
pub(crate) fn nests_deeper(value: &Value, limit: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if limit == 0 => true,
        Value::Array(items) => items.iter().any(|item| nests_deeper(item, limit - 1)),
        Value::Object(fields) => fields.values().any(|field| nests_deeper(field, limit - 1)),
        _ => false,
    }
}

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
            (config().frequency_penalty(f32::INFINITY), "frequency_penalty"),
            (config().presence_penalty(f32::NAN), "presence_penalty"),
            (config().logit_bias([(3, f32::INFINITY)].into()), "logit_bias"),
            (config().max_tokens(0), "max_tokens"),
            (config().max_tokens(3).min_tokens(4), "min_tokens"),
            (config().stop(vec![String::new()]), "stop"),
            (config().stop(vec!["a".repeat(3 << 20), "b".repeat(2 << 20)]), "stop"),
            (config().logprobs(100_000), "logprobs"),
            (config().prompt_lookup(65), "prompt_lookup"),
            (config().adapter(""), "adapter"),
            (config().adapter("a").base_model(true), "base_model"),
            (config().template_var("messages", Value::Null), "template_vars"),
            (config().template_var("add_generation_prompt", false), "template_vars"),
            (config().template_var("bos_token", "<s>"), "template_vars"),
            (config().template_var("eos_token", "</s>"), "template_vars"),
            (config().template_var("tools", nested(MAX_NESTING + 1)), "template_vars"),
        ] {
            match bad.validate() {
                Err(Error::InvalidConfig { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        config().temperature(0.7).top_p(1.0).min_p(0.0).repeat_penalty(1.0).validate().unwrap();
        config().template_var("tools", nested(MAX_NESTING)).template_var("messages_", true).validate().unwrap();
    }

    #[test]
    fn lists_and_maps_are_added_to() {
        let config = GenerateConfig::new().stop(vec!["a".into()]).stop(vec!["b".into()]).stop(Vec::new());
        assert_eq!(config.stop, ["a", "b"]);
        let config = config.stop_tokens(vec![1]).stop_tokens(vec![2, 3]);
        assert_eq!(config.stop_tokens, [1, 2, 3]);
        let config = config.logit_bias([(1, 1.0), (2, 2.0)].into()).logit_bias([(2, 3.0), (4, 4.0)].into());
        assert_eq!(config.logit_bias, [(1, 1.0), (2, 3.0), (4, 4.0)].into());
        let vars = |name: &str, value: i32| Map::from_iter([(name.to_owned(), value.into())]);
        let config = config.template_var("a", 1).template_vars(vars("b", 2)).template_vars(vars("a", 3));
        assert_eq!(Value::from(config.template_vars), serde_json::json!({"a": 3, "b": 2}));
    }

    #[test]
    fn seeds_differ_by_prompt_if_they_are_to() {
        let seeds = |config: GenerateConfig| [0, 1, 5].map(|index| config.for_prompt(index).seed);
        assert_eq!(seeds(GenerateConfig::new().seed(7)), [Some(7); 3]);
        assert_eq!(seeds(GenerateConfig::new().seed(7).seed_per_prompt(true)), [Some(7), Some(8), Some(12)]);
        assert_eq!(
            seeds(GenerateConfig::new().seed(u64::MAX).seed_per_prompt(true)),
            [Some(u64::MAX), Some(0), Some(4)]
        );
        assert_eq!(seeds(GenerateConfig::new().seed_per_prompt(true)), [None; 3]);
    }

    fn nested(depth: usize) -> Value {
        (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
    }
}
