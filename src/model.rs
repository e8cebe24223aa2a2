use std::{path::Path, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    AttentionInspector, Capability, Error, GenerateConfig, LoadConfig, Message, Result, Token, TokenStream,
    TrainableModel, backend,
};

/// A loaded language model: one handle for any number of tasks.
///
/// Share it as `Arc<dyn TextModel>` (`Arc::from(load_model(..).await?)`). Requests of all tasks
/// are packed into shared forward passes; what one of them answers does not depend on the others.
#[async_trait]
pub trait TextModel: Send + Sync {
    /// Continues `prompt`.
    ///
    /// Returns at once and never blocks; the work starts in the background. The prompt is the
    /// program's own text: special tokens written in it are recognised, and the tokenizer adds
    /// what it always adds (a beginning-of-text token, say). For text of users there is
    /// [`chat`](Self::chat).
    ///
    /// # Errors
    /// A request that cannot be served gives a stream that has ended, with
    /// [`err`](TokenStream::err) saying why.
    fn generate(&self, prompt: &str, config: GenerateConfig) -> TokenStream;

    /// Answers a conversation, written down by the model's chat template.
    ///
    /// As [`generate`](Self::generate), but nothing in a message can become a control token. Tools, documents
    /// and what else the template reads are [`GenerateConfig::template_vars`].
    fn chat(&self, messages: &[Message], config: GenerateConfig) -> TokenStream;

    /// Continues tokens, as [`generate`](Self::generate) continues text. None is added to them: begin with the
    /// beginning-of-text token of a model that has one, as [`encode`](Self::encode) does.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); an id that is not in the vocabulary is an [`Error::InvalidConfig`] that names
    /// it. A model without a tokenizer of its own gives [`Error::Unsupported`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn run(model: Box<dyn tokenflow::TextModel>) -> tokenflow::Result<()> {
    /// use tokenflow::GenerateConfig;
    ///
    /// let mut ids = model.encode("Is the sea deep?")?;
    /// ids.extend(model.token_id("<|im_end|>"));
    /// println!("{}", model.generate_ids(&ids, GenerateConfig::new()).text().await?);
    /// # Ok(()) }
    /// ```
    fn generate_ids(&self, prompt: &[u32], config: GenerateConfig) -> TokenStream {
        let _ = (prompt, config);
        TokenStream::failed(Error::Unsupported { capability: Capability::Tokenize })
    }

    /// The ids of a text, as [`generate`](Self::generate) reads it: special tokens written in it are recognised, and
    /// the tokens that the tokenizer puts around every text are there. It works on the calling thread.
    ///
    /// # Errors
    /// [`Error::Internal`] if the tokenizer fails, [`Error::Closed`] once the model is closed, [`Error::Unsupported`]
    /// if it has no tokenizer of its own.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let _ = text;
        Err(Error::Unsupported { capability: Capability::Tokenize })
    }

    /// The text of ids, special tokens included.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names an id that is not in the vocabulary; else as [`encode`](Self::encode).
    fn decode(&self, ids: &[u32]) -> Result<String> {
        let _ = ids;
        Err(Error::Unsupported { capability: Capability::Tokenize })
    }

    /// The id of a token, for [`stop_tokens`](GenerateConfig::stop_tokens) and
    /// [`logit_bias`](GenerateConfig::logit_bias), if the vocabulary has it.
    ///
    /// `token` is written as in the vocabulary: special tokens as they are (`<|im_end|>`), pieces of text as the tokenizer
    /// has them, which is often with a mark for a space (`Ġthe`, `▁the`). [`encode`](Self::encode) finds the ids of
    /// ordinary text. Models without a tokenizer of their own know none.
    fn token_id(&self, token: &str) -> Option<u32> {
        let _ = token;
        None
    }

    /// The ids that end an answer, unless [`ignore_eos`](GenerateConfig::ignore_eos) is set. Empty if the model has
    /// none, or does not tell.
    fn end_ids(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Predicts one token after each prompt: prefill only, the logits of the last position only.
    ///
    /// [`ClassifyResult::logits`] is filled if [`GenerateConfig::return_logits`] asks for it. The token is sampled as
    /// `config` says, so that a penalty or a bias concerns it.
    ///
    /// # Errors
    /// The first prompt that fails fails the call, and the error says which one it was: see [`Error::at_prompt`].
    ///
    /// # Cancel safety
    /// Dropping the future frees everything it holds within one step.
    async fn classify(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<ClassifyResult>>;

    /// Continues many prompts in shared passes, and returns when all have ended.
    ///
    /// # Errors
    /// A prompt's failure is its own, in [`BatchResult::err`], and the results are in the prompts' order. The call
    /// itself fails on an invalid config or a closed model.
    ///
    /// # Cancel safety
    /// Dropping the future frees everything it holds within one step.
    async fn batch_generate(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<BatchResult>>;

    /// Tells how likely the model finds each token of the prompts, given those before it: prefill only.
    ///
    /// The tokens of each prompt come back with [`Token::logprobs`]; the first has none, for nothing is before it.
    /// Special tokens and what the tokenizer adds are as with [`generate`](Self::generate).
    /// [`GenerateConfig::logprobs`] asks for alternatives at each place, [`GenerateConfig::adapter`] and what concerns
    /// the request itself is heeded, the rest is about answers: [`GenerateConfig`] lists it. What is cached of a
    /// prompt is computed again, 64 tokens a pass.
    ///
    /// # Errors
    /// The first prompt that fails fails the call, and the error says which one it was: see [`Error::at_prompt`]. A
    /// backend that cannot score says [`Error::InvalidConfig`].
    ///
    /// # Cancel safety
    /// Dropping the future frees everything it holds within one step.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn run(model: Box<dyn tokenflow::TextModel>) -> tokenflow::Result<()> {
    /// use tokenflow::GenerateConfig;
    ///
    /// let text = "The tide turns twice a day.";
    /// let tokens = model.score(&[text], GenerateConfig::new()).await?.remove(0);
    /// let logprobs: Vec<f32> = tokens.iter().filter_map(|token| Some(token.logprobs.as_ref()?.logprob)).collect();
    /// let perplexity = (-logprobs.iter().sum::<f32>() / logprobs.len() as f32).exp();
    /// # let _ = perplexity;
    /// # Ok(()) }
    /// ```
    async fn score(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<Vec<Token>>> {
        let _ = (prompts, config);
        Err(Error::config("prompts", "this model cannot score them"))
    }

    /// The architecture's name: "llama", "qwen3", …
    fn model_type(&self) -> &str;

    /// What the model is.
    fn info(&self) -> ModelInfo;

    /// Figures of the operation that ended last, **whoever began it**.
    ///
    /// Where requests share a model that is some other request as often as not, even right after one's own: each prompt
    /// of a batch is an operation, and so is a stream that somebody has dropped. What a program wants of its own
    /// request is
    /// [`TokenStream::metrics`], which is of that stream alone; this is for programs with one request at a time.
    /// [`stats`](Self::stats) counts all of them.
    fn metrics(&self) -> GenerateMetrics;

    /// The error of the operation that ended last, if it failed, **whoever began it**: see [`metrics`](Self::metrics).
    ///
    /// Do not look here for the fate of a stream: that is [`TokenStream::err`], or the last item of
    /// [`TokenStream::into_results`]. Of a batch it is [`BatchResult::err`], and `classify` and `score` return theirs.
    fn err(&self) -> Option<Error>;

    /// What the model does now and has done since it was loaded: a snapshot that costs next to nothing,
    /// for dashboards and load shedding. Backends that count nothing give zeros.
    fn stats(&self) -> ModelStats {
        ModelStats::default()
    }

    /// Loads an adapter, for requests whose [`GenerateConfig::adapter`] has its name: a directory of PEFT (LoRA, also
    /// rank-stabilised, and DoRA) or of MLX-LM. Requests with different adapters, and with none, share passes.
    ///
    /// One of the same name is replaced; requests that use it end with it. The files are read on a thread of their own.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the field or tensor at fault, [`Error::InvalidConfig`] says that the
    /// model takes no adapters, or that the name is empty.
    ///
    /// # Cancel safety
    /// If the future is dropped, the adapter is not loaded.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn run(model: Box<dyn tokenflow::TextModel>) -> tokenflow::Result<()> {
    /// use tokenflow::GenerateConfig;
    ///
    /// model.load_adapter("legal", "adapters/legal".as_ref()).await?;
    /// let config = GenerateConfig::new().adapter("legal");
    /// println!("{}", model.generate("The tenant shall", config).text().await?);
    /// model.unload_adapter("legal").await?;
    /// # Ok(()) }
    /// ```
    async fn load_adapter(&self, name: &str, path: &Path) -> Result<()> {
        let _ = (name, path);
        Err(Error::config("adapter", "this model takes none"))
    }

    /// Forgets an adapter. Requests that use it end with it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if none has this name.
    async fn unload_adapter(&self, name: &str) -> Result<()> {
        Err(Error::config("adapter", format!("{name:?} is not loaded: this model takes none")))
    }

    /// The names of the adapters that are loaded, sorted.
    fn adapters(&self) -> Vec<String> {
        Vec::new()
    }

    /// Ends all running requests with [`Error::Closed`] and waits until the model's memory is
    /// free. Idempotent; later calls of the other methods answer [`Error::Closed`].
    ///
    /// # Cancel safety
    /// The model closes even if this future is dropped.
    async fn close(&self) -> Result<()>;

    /// The model as one that can be trained, if it can.
    fn as_trainable(&self) -> Option<&dyn TrainableModel> {
        None
    }

    /// The model as one whose attention can be read, if it can.
    fn as_attention_inspector(&self) -> Option<&dyn AttentionInspector> {
        None
    }
}

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
    #[serde(with = "crate::seconds")]
    pub pass_duration: Duration,
    /// Tokens computed in them: of prompts, of answers, of drafts, and again after a preemption.
    pub batched_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Tokens guessed by [`prompt_lookup`](GenerateConfig::prompt_lookup).
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
    /// Tokens guessed by [`prompt_lookup`](GenerateConfig::prompt_lookup).
    pub drafted_tokens: usize,
    /// Those of them that were right, each of which saved a forward pass.
    pub accepted_tokens: usize,
    /// From the call until the first forward pass, tokenizing included.
    #[serde(with = "crate::seconds")]
    pub queue_duration: Duration,
    /// From the first forward pass until the first token was sampled.
    #[serde(with = "crate::seconds")]
    pub prefill_duration: Duration,
    /// From the first token until the last.
    #[serde(with = "crate::seconds")]
    pub decode_duration: Duration,
    /// From the call until the end.
    #[serde(with = "crate::seconds")]
    pub total_duration: Duration,
    /// From the call until the first token was sampled.
    #[serde(with = "crate::seconds")]
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
            prefill_tokens_per_sec: rate(prompt_tokens - cached_prompt_tokens, prefill_duration),
            decode_tokens_per_sec: rate(sum(|part| part.generated_tokens.saturating_sub(1)), decode_duration),
            peak_memory_bytes: parts.iter().map(|part| part.peak_memory_bytes).max().unwrap_or_default(),
            active_memory_bytes: parts.last().map_or(0, |part| part.active_memory_bytes),
        }
    }
}

/// Tokens per second; 0 if there is nothing to divide.
pub(crate) fn rate(tokens: usize, duration: Duration) -> f64 {
    if duration.is_zero() { 0.0 } else { tokens as f64 / duration.as_secs_f64() }
}

/// The answer to one prompt of [`TextModel::classify`]. In JSON a logit of negative infinity is `null`.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ClassifyResult {
    /// The token predicted after the prompt. Unlike in a stream it may be an end-of-text token.
    pub token: Token,
    /// The logits it was chosen from, `[vocab_size]`, if the config asked for them.
    pub logits: Option<Vec<f32>>,
}

impl ClassifyResult {
    /// A result, for implementers of backends.
    pub fn new(token: Token, logits: Option<Vec<f32>>) -> Self {
        Self { token, logits }
    }
}

/// The answer to one prompt of [`TextModel::batch_generate`]. For serde the error is its message.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct BatchResult {
    /// The tokens generated.
    pub tokens: Vec<Token>,
    /// Why the answer is cut short, if it is.
    #[serde(serialize_with = "message")]
    pub err: Option<Error>,
}

fn message<S: Serializer>(error: &Option<Error>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

impl BatchResult {
    /// A result, for implementers of backends.
    pub fn new(tokens: Vec<Token>, err: Option<Error>) -> Self {
        Self { tokens, err }
    }

    /// The text of the answer.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }
}

/// Loads the model at `path`: a Hugging Face directory (`config.json` and `*.safetensors`) or a
/// `.gguf` file.
///
/// The backend is the one [`LoadConfig::backend`] names, else the best available one. Loading runs
/// on a thread of its own.
///
/// # Errors
/// [`Error::InvalidModel`] names the file and the field at fault;
/// [`Error::UnsupportedArchitecture`] lists the architectures that are there;
/// [`Error::InvalidConfig`] names the field of `config` that cannot be honoured;
/// [`Error::BackendNotFound`], [`Error::BackendUnavailable`] and [`Error::NoBackend`] concern the
/// choice of a backend.
///
/// # Examples
/// ```no_run
/// # async fn run() -> tokenflow::Result<()> {
/// use tokenflow::{GenerateConfig, LoadConfig, load_model};
///
/// let model = load_model("SmolLM2-135M-Instruct.gguf", LoadConfig::new()).await?;
/// println!("{}", model.generate("Once upon a time", GenerateConfig::new()).text().await?);
/// # Ok(()) }
/// ```
pub async fn load_model(path: impl AsRef<Path>, config: LoadConfig) -> Result<Box<dyn TextModel>> {
    let (path, config) = (path.as_ref(), &config);
    backend::load_with(config.backend.as_deref(), |backend| async move { backend.load_model(path, config).await }).await
}

/// Loads the model at `path` for training.
///
/// # Errors
/// As [`load_model`], and [`Error::NotTrainable`] if the backend cannot train: that of this crate for the CPU can.
///
/// # Examples
/// See [`TrainableModel`].
pub async fn load_trainable(path: impl AsRef<Path>, config: LoadConfig) -> Result<Box<dyn TrainableModel>> {
    let (path, config) = (path.as_ref(), &config);
    backend::load_with(config.backend.as_deref(), |backend| async move { backend.load_trainable(path, config).await })
        .await
}
