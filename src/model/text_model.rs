//! The interface of all models.

use std::path::Path;

use async_trait::async_trait;

use super::{AttentionInspector, TrainableModel};
use crate::{
    BatchResult, Capability, ClassifyResult, Error, GenerateConfig, GenerateMetrics, Message, ModelInfo, ModelStats,
    Result, Token, TokenStream,
};

/// A loaded language model, to be shared by any number of tasks as `Arc<dyn TextModel>`:
/// `Arc::from(load_model(..).await?)`.
///
/// Requests of all tasks share forward passes (continuous batching), and no answer depends on the other requests.
#[async_trait]
pub trait TextModel: Send + Sync {
    /// Continues `prompt`.
    ///
    /// Returns at once and never blocks; the work starts in the background. The prompt is the program's own text:
    /// special tokens written in it are recognized, and the tokenizer adds its usual special tokens, such as a
    /// beginning-of-text token. For text of users there is [`chat`](Self::chat).
    ///
    /// # Errors
    /// A refused request gives a stream that has already ended, whose [`err`](TokenStream::err) says why:
    /// [`Error::Overloaded`], [`Error::InvalidConfig`], [`Error::Closed`]. Later errors end the stream after the tokens
    /// generated so far.
    ///
    /// # Cancel safety
    /// Dropping the stream cancels the request; its memory is free before the next forward pass.
    fn generate(&self, prompt: &str, config: GenerateConfig) -> TokenStream;

    /// Answers a conversation, rendered by the model's chat template.
    ///
    /// As [`generate`](Self::generate), but nothing in a message can become a control token. Tools, documents and other
    /// variables of the template are [`GenerateConfig::template_vars`].
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and [`Error::NoChatTemplate`], [`Error::ChatTemplate`].
    fn chat(&self, messages: &[Message], config: GenerateConfig) -> TokenStream;

    /// Continues token ids, as [`generate`](Self::generate) continues text. No token is added: begin with the
    /// beginning-of-text token if the model has one, as [`encode`](Self::encode) does.
    ///
    /// # Errors
    /// As [`generate`](Self::generate). [`Error::InvalidConfig`] names an id that is not in the vocabulary;
    /// [`Error::Unsupported`] if the model has no tokenizer of its own.
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

    /// The ids of a text as a prompt of [`generate`](Self::generate): special tokens written in it are recognized, and
    /// the tokenizer's usual special tokens are added. Works on the calling thread.
    ///
    /// # Errors
    /// [`Error::Internal`] if the tokenizer fails, [`Error::Closed`] once the model is closed, [`Error::Unsupported`]
    /// if it has no tokenizer of its own.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let _ = text;
        Err(Error::Unsupported { capability: Capability::Tokenize })
    }

    /// The text of ids, with special tokens.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names an id that is not in the vocabulary; else as [`encode`](Self::encode).
    fn decode(&self, ids: &[u32]) -> Result<String> {
        let _ = ids;
        Err(Error::Unsupported { capability: Capability::Tokenize })
    }

    /// The id of a token, for [`stop_tokens`](GenerateConfig::stop_tokens) and
    /// [`logit_bias`](GenerateConfig::logit_bias); `None` if the vocabulary does not have it, or the model has no
    /// tokenizer of its own.
    ///
    /// `token` is spelled as in the vocabulary: special tokens as they are (`<|im_end|>`), pieces of text often with a
    /// mark for a space (`Ġthe`, `▁the`). [`encode`](Self::encode) finds the ids of ordinary text.
    fn token_id(&self, token: &str) -> Option<u32> {
        let _ = token;
        None
    }

    /// The ids that end an answer, unless [`ignore_eos`](GenerateConfig::ignore_eos) is set. Empty if there are none,
    /// or the backend does not know them.
    fn end_ids(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Predicts one token after each prompt: prefill only, with the logits of the last position.
    ///
    /// The token is sampled as `config` says, with penalties and biases. [`GenerateConfig::return_logits`] asks for
    /// [`ClassifyResult::logits`]. The prefill of a common prefix of the prompts is computed once.
    ///
    /// # Errors
    /// The error of the first prompt that fails ends the call, and names the prompt: see [`Error::at_prompt`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels all its requests; their memory is free before the next forward pass.
    async fn classify(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<ClassifyResult>>;

    /// Continues many prompts in shared passes, and returns when all have ended. The results are in the order of the
    /// prompts.
    ///
    /// A batch waits for room where a stream would be refused, and streams are served beside it.
    ///
    /// # Errors
    /// The error of a prompt is in its [`BatchResult::err`] and leaves the others alone. The call itself fails on an
    /// invalid config or a closed model.
    ///
    /// # Cancel safety
    /// Dropping the future cancels all its requests; their memory is free before the next forward pass.
    async fn batch_generate(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<BatchResult>>;

    /// The log-probability of each token of the prompts, given the tokens before it: prefill only.
    ///
    /// The tokens of each prompt are returned with [`Token::logprobs`], except for the first, which follows no token.
    /// Prompts are tokenized as by [`generate`](Self::generate). [`GenerateConfig::logprobs`] asks for alternatives at
    /// each position; [`GenerateConfig`] lists the other fields that are read. The prefix cache is not used, and a pass
    /// scores 64 tokens.
    ///
    /// # Errors
    /// The error of the first prompt that fails ends the call, and names the prompt: see [`Error::at_prompt`].
    /// [`Error::InvalidConfig`] if the backend cannot score.
    ///
    /// # Cancel safety
    /// Dropping the future cancels all its requests; their memory is free before the next forward pass.
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

    /// Description of the model.
    fn info(&self) -> ModelInfo;

    /// Metrics of the operation that ended last, **of any task**.
    ///
    /// In a shared model that is often another request, even right after one's own: each prompt of a batch is an
    /// operation, and so is a dropped stream. The metrics of a stream are [`TokenStream::metrics`]; this method is for
    /// programs with one request at a time. [`stats`](Self::stats) counts all requests.
    fn metrics(&self) -> GenerateMetrics;

    /// The error of the operation that ended last, **of any task**, if it failed: see [`metrics`](Self::metrics).
    ///
    /// The error of a stream is [`TokenStream::err`], or the last item of [`TokenStream::into_results`]; the error of a
    /// prompt of a batch is [`BatchResult::err`]; `classify` and `score` return theirs.
    fn err(&self) -> Option<Error>;

    /// Gauges of this moment and counters since loading: a cheap snapshot, for dashboards and load shedding. Zeros from
    /// backends that do not count.
    fn stats(&self) -> ModelStats {
        ModelStats::default()
    }

    /// Loads an adapter for requests that name it in [`GenerateConfig::adapter`]: a directory of PEFT (LoRA,
    /// rank-stabilized LoRA, DoRA) or of MLX-LM. Requests with different adapters, and without, share passes.
    ///
    /// An adapter of the same name is replaced; running requests keep the old one to their end. The files are read on a
    /// thread of their own.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the field or tensor at fault; [`Error::InvalidConfig`] if the model
    /// takes no adapters, or the name is empty.
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

    /// Unloads an adapter. Running requests keep it to their end.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if no adapter has this name.
    async fn unload_adapter(&self, name: &str) -> Result<()> {
        Err(Error::config("adapter", format!("{name:?} is not loaded: this model takes none")))
    }

    /// The names of the loaded adapters, sorted.
    fn adapters(&self) -> Vec<String> {
        Vec::new()
    }

    /// Ends all running requests with [`Error::Closed`] and waits until the model's memory is free. Idempotent; later
    /// calls of the other methods answer [`Error::Closed`].
    ///
    /// # Cancel safety
    /// The model closes even if this future is dropped.
    async fn close(&self) -> Result<()>;

    /// The model's training, if it can be trained.
    fn as_trainable(&self) -> Option<&dyn TrainableModel> {
        None
    }

    /// The model's inspection, if its attention can be read.
    fn as_attention_inspector(&self) -> Option<&dyn AttentionInspector> {
        None
    }
}
