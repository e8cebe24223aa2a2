use std::path::Path;

use async_trait::async_trait;
use serde::{Serialize, Serializer};

use crate::{
    AttentionInspector, Capability, Error, GenerateConfig, GenerateMetrics, Message, ModelInfo, ModelStats, Result,
    Token, TokenStream, TrainableModel,
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
