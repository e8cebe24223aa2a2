//! Settings of a request.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{Deadline, MAX_NESTING, check_adapter, nests_deeper, setters};
use crate::{Error, Result};

/// The most bytes of all strings of [`GenerateConfig::stop`] together.
const MAX_STOP_BYTES: usize = 4 << 20;

/// The most alternatives [`GenerateConfig::logprobs`] may ask for.
const MAX_LOGPROBS: usize = 128;

/// The longest draft [`GenerateConfig::prompt_lookup`] may ask for.
const MAX_PROMPT_LOOKUP: usize = 64;

/// Template variables that callers cannot set.
const TEMPLATE_NAMES: [&str; 4] = ["messages", "add_generation_prompt", "bos_token", "eos_token"];

/// Settings of a request: `GenerateConfig::new()` and the builder methods.
///
/// ```
/// use tokenflow::GenerateConfig;
/// let config = GenerateConfig::new().max_tokens(64).temperature(0.7).top_p(0.9).seed(7);
/// assert_eq!(config.max_tokens, 64);
/// ```
///
/// Builder methods of lists and maps add to the field, all others replace its value. The fields are public: assign one
/// to begin a list anew.
///
/// ```
/// use tokenflow::GenerateConfig;
/// let mut config = GenerateConfig::new().stop(vec!["\n".into()]).stop(vec!["User:".into()]);
/// assert_eq!(config.stop, ["\n", "User:"]);
/// config.stop = vec!["END".into()];
/// ```
///
/// # Which calls read which fields
/// | | [`generate`], [`batch_generate`] | [`chat`] | [`classify`] | [`score`] |
/// |---|---|---|---|---|
/// | `cancellation`, `deadline`, `priority`, `cache_salt` | yes | yes | yes | yes |
/// | `adapter`, `base_model`, `logprobs` | yes | yes | yes | yes |
/// | `temperature`, `top_k`, `top_p`, `min_p`, `seed`, penalties, `logit_bias` | yes | yes | yes | no effect |
/// | `max_tokens`, `prompt_lookup` | yes | yes | no effect | no effect |
/// | `stop`, `stop_tokens`, `min_tokens`, `ignore_eos` | yes | yes | refused | refused |
/// | `template_vars`, `continue_final_message` | no effect | yes | no effect | no effect |
/// | `return_logits` | refused | refused | yes | refused |
///
/// Refused means [`Error::InvalidConfig`] with the field's name. A value without meaning is refused by every call.
///
/// [`generate`]: crate::TextModel::generate
/// [`batch_generate`]: crate::TextModel::batch_generate
/// [`chat`]: crate::TextModel::chat
/// [`classify`]: crate::TextModel::classify
/// [`score`]: crate::TextModel::score
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GenerateConfig {
    /// The most tokens to generate (256). A sequence also ends when its context is full.
    pub max_tokens: usize,
    /// The fewest tokens to generate (0), as far as the context holds them. Up to there neither end-of-text tokens nor
    /// [`stop_tokens`](Self::stop_tokens) can be sampled, and no [`stop`](Self::stop) string ends the answer.
    pub min_tokens: usize,
    /// Divides the logits before sampling. 0, the default, takes the most likely token.
    pub temperature: f32,
    /// Samples among this many of the most likely tokens; 0 is off.
    pub top_k: usize,
    /// Samples among the fewest tokens whose probabilities sum to this; 0 and 1 are off.
    pub top_p: f32,
    /// Samples among tokens whose probability is at least this fraction of the most likely token's; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that are already in the prompt or
    /// the answer ([CTRL](https://arxiv.org/abs/1909.05858), section 4.1); 0 and 1 are off.
    pub repeat_penalty: f32,
    /// Subtracted from a token's logit for each time the answer has it; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit once the answer has it; 0 is off.
    pub presence_penalty: f32,
    /// The number of latest tokens, of prompt and answer together, that the three penalties look back on. 0, the
    /// default, is all of them, as in transformers and vLLM; llama.cpp has 64. Without a penalty it has no effect.
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
    /// Whether the answer goes on past the model's own end-of-text tokens (`false`). They are then ordinary tokens of
    /// the answer; special ones have no text. [`stop_tokens`](Self::stop_tokens) and [`stop`](Self::stop) still end it.
    pub ignore_eos: bool,
    /// Seed of the sampler. The same seed gives the same tokens, so equal prompts of a batch get equal answers, unless
    /// [`seed_per_prompt`](Self::seed_per_prompt) is set. `None`: a different seed for each request and each prompt.
    pub seed: Option<u64>,
    /// Whether the prompt at index `i` of [`batch_generate`](crate::TextModel::batch_generate) and
    /// [`classify`](crate::TextModel::classify) has the seed `seed + i` (`false`), so that equal prompts have different
    /// answers: the ones that [`generate`](crate::TextModel::generate) gives with these seeds. A single prompt is at
    /// index 0.
    pub seed_per_prompt: bool,
    /// Whether [`classify`](crate::TextModel::classify) returns the logits.
    pub return_logits: bool,
    /// Returns the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// A token whose cancellation ends the request with [`Error::Cancelled`].
    pub cancellation: Option<CancellationToken>,
    /// When the request ends with [`Error::DeadlineExceeded`]: waiting, being tokenized, or running.
    pub deadline: Option<Deadline>,
    /// Waiting requests of greater priority start first; 0 is usual. Equal priorities start in order of arrival, and
    /// none waits for ever. When the KV cache runs out, requests of the least priority are preempted.
    pub priority: i32,
    /// Salt of the prefix cache: cached prefixes are shared only between requests with the same salt, so that no tenant
    /// can tell from the time to the first token whether another tenant has sent a prompt.
    pub cache_salt: Option<String>,
    /// Name of the adapter of this request, as given to [`load_adapter`](crate::TextModel::load_adapter). `None`: the
    /// default adapter, if there is one: [`LoadConfig::adapter_path`](crate::LoadConfig::adapter_path), or the result
    /// of the latest [training](crate::TrainableModel::train).
    pub adapter: Option<String>,
    /// Whether this request uses the base model, without even the default adapter (`false`).
    ///
    /// ```
    /// use tokenflow::GenerateConfig;
    /// let config = GenerateConfig::new().base_model(true);
    /// assert!(config.base_model);
    /// ```
    pub base_model: bool,
    /// Speculative decoding by prompt lookup: the longest draft for a step; 0, the default, is off.
    ///
    /// If the last tokens occurred before, in the prompt or the answer, the tokens that followed them there are
    /// drafted, and one forward pass verifies the whole draft. The answer is the same to the bit, and takes fewer
    /// passes if it repeats much: summaries, edits, extraction, code. A rejected draft costs time, so drafts are as
    /// long as their acceptance rate is worth, and shorter beside many streams. 8 is a good start, 64 the most.
    /// [`drafted_tokens`](crate::GenerateMetrics::drafted_tokens) and
    /// [`accepted_tokens`](crate::GenerateMetrics::accepted_tokens) count them.
    ///
    /// Drafts use the part of [`max_batched_tokens`](crate::LoadConfig::max_batched_tokens) that prompts leave, and
    /// free blocks of the KV cache: no other request gives way for them.
    pub prompt_lookup: usize,
    /// Variables of the chat template beside the messages, for [`chat`](crate::TextModel::chat): `tools`, `documents`,
    /// `enable_thinking`, `date_string`, as far as the model's template reads them. Nothing in them becomes a control
    /// token.
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
    /// Whether [`chat`](crate::TextModel::chat) continues the last message in place of answering it (`false`): the
    /// prompt ends with the content of the last message, and the answer follows it. As in transformers, space at the
    /// end of the content stays unless the chat template trims it. A template that does not write the content unchanged
    /// makes the request [`Error::InvalidConfig`].
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
        /// Sets the most tokens to generate.
        max_tokens: usize => max_tokens;
        /// Sets the fewest tokens to generate.
        min_tokens: usize => min_tokens;
        /// Sets the sampling temperature.
        temperature: f32 => temperature;
        /// Samples among this many of the most likely tokens.
        top_k: usize => top_k;
        /// Samples in the nucleus of the distribution.
        top_p: f32 => top_p;
        /// Samples among tokens that are likely enough relative to the most likely one.
        min_p: f32 => min_p;
        /// Penalizes tokens of the prompt and the answer.
        repeat_penalty: f32 => repeat_penalty;
        /// Penalizes tokens by their count in the answer.
        frequency_penalty: f32 => frequency_penalty;
        /// Penalizes tokens of the answer.
        presence_penalty: f32 => presence_penalty;
        /// Bounds how far penalties look back.
        penalty_window: usize => penalty_window;
        /// Goes on past the model's own end-of-text tokens.
        ignore_eos: bool => ignore_eos;
        /// Continues the last message of a chat in place of answering it.
        continue_final_message: bool => continue_final_message;
        /// Seeds the sampler.
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
        /// Ends the request after a `Duration`, or at an `Instant`.
        deadline: impl Into<Deadline> => Some(deadline.into());
        /// Sets the priority.
        priority: i32 => priority;
        /// Shares cached prefixes only with requests of the same salt.
        cache_salt: impl Into<String> => Some(cache_salt.into());
        /// Chooses an adapter by its name.
        adapter: impl Into<String> => Some(adapter.into());
        /// Uses the base model without an adapter.
        base_model: bool => base_model;
        /// Drafts at most this many tokens a step by prompt lookup.
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

    /// Adds biases of logits. A new bias of an id replaces its old one.
    #[must_use]
    pub fn logit_bias(mut self, logit_bias: HashMap<u32, f32>) -> Self {
        self.logit_bias.extend(logit_bias);
        self
    }

    /// Adds variables of the chat template. A new value of a variable replaces its old one.
    #[must_use]
    pub fn template_vars(mut self, template_vars: Map<String, Value>) -> Self {
        self.template_vars.extend(template_vars);
        self
    }

    /// Adds a variable of the chat template, as [`template_vars`](Self::template_vars) does.
    #[must_use]
    pub fn template_var(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.template_vars.insert(name.into(), value.into());
        self
    }

    /// The config of the prompt at `index` of a batch.
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
