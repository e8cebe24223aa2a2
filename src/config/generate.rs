use std::collections::HashMap;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{Deadline, MAX_NESTING, check_adapter, nests_deeper, setters};
use crate::{Error, Result};

/// The most bytes that the strings of [`GenerateConfig::stop`] may have in all.
const MAX_STOP_BYTES: usize = 4 << 20;

/// The most alternatives [`GenerateConfig::logprobs`] may ask for.
const MAX_LOGPROBS: usize = 128;

/// The most tokens [`GenerateConfig::prompt_lookup`] may guess.
const MAX_PROMPT_LOOKUP: usize = 64;

/// Template variables that are not the caller's.
const TEMPLATE_NAMES: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];

/// How an answer is generated. `GenerateConfig::new()` and the builder methods.
///
/// ```
/// use tokenflow::GenerateConfig;
/// let config = GenerateConfig::new().max_tokens(64).temperature(0.7).top_p(0.9).seed(7);
/// assert_eq!(config.max_tokens, 64);
/// ```
///
/// Builder methods of lists and maps add to what is there, those of single values replace it. The fields are public:
/// assign one to begin a list anew.
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
/// | `cancellation`, `deadline`, `priority`, `cache_salt`, `adapter`, `base_model`, `logprobs` | yes | yes | yes | yes |
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
    /// Tokens to generate at least (0), as far as the context holds them: before that many neither end-of-text tokens
    /// nor
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
    /// How many tokens the three penalties look back on, the latest of prompt and answer together. 0, the default, is
    /// all of them, as in transformers and vLLM; llama.cpp has 64. Without a penalty it has no effect.
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
    /// Whether the answer goes on past the model's own end-of-text tokens (`false`). They are tokens of the answer
    /// then, as any other; special ones have no text. [`stop_tokens`](Self::stop_tokens) and [`stop`](Self::stop)
    /// still end it.
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
    /// [loaded](crate::TextModel::load_adapter) under. `None`: that of
    /// [`LoadConfig::adapter_path`](crate::LoadConfig::adapter_path) or the one that was
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
    /// worth it by how often they were right, and fewer beside many streams. 8 is a good start, 64 the most.
    /// [`accepted_tokens`](crate::GenerateMetrics::accepted_tokens) tells how many of the
    /// [`drafted_tokens`](crate::GenerateMetrics::drafted_tokens) were right.
    ///
    /// Guesses take what prompts leave of a pass ([`max_batched_tokens`](crate::LoadConfig::max_batched_tokens)), and
    /// memory that nobody uses.
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
    /// content's end stays unless the chat template trims it, and the content must be in what the template writes, or
    /// the request is [`Error::InvalidConfig`].
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

fn within(field: &'static str, value: f32, max: f32) -> Result<()> {
    if (0.0..=max).contains(&value) {
        Ok(())
    } else if max == f32::MAX {
        Err(Error::config(field, format!("{value} is not a finite number of at least 0")))
    } else {
        Err(Error::config(field, format!("{value} is not between 0 and {max}")))
    }
}
