//! A model without weights, for testing programs that use models.
//!
//! A [`ScriptedModel`] answers as a function says. Everything else is what it is with any other model:
//! the queue, shared passes, the paged cache, cancellation, back-pressure, stop strings, metrics. So a
//! test of a handler that uses it is a test of how the handler treats a real model, in milliseconds.
//!
//! ```
//! use tokenflow::{GenerateConfig, Message, testing::ScriptedModel};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> tokenflow::Result<()> {
//! let model = ScriptedModel::new(|prompt| format!("You said {:?}.", prompt.trim())).build()?;
//! let answer = model.chat(&[Message::user("Hello")], GenerateConfig::new()).text().await?;
//! assert_eq!(answer, r#"You said "user: Hello"."#);
//! # Ok(()) }
//! ```

use std::{collections::HashMap, path::Path, sync::Arc};

use tokenizers::{
    AddedToken,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

use crate::{
    Error, LoadConfig, ModelInfo, Result, TextModel,
    backend::{cache_plan::CachePlan, local::LocalModel},
    decoder::{BLOCK_TOKENS, Batch, Forward, Span},
    engine::{Engine, Options},
    text::{ChatTemplate, TextProcessor, Tokenizer},
};

/// Stands between prompt and answer.
const REPLY: &str = "<|reply|>";
/// Ends an answer.
const END: &str = "<|end|>";
/// One line a message.
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}<|reply|>";
/// Tokens a sequence may hold.
const MAX_POSITIONS: usize = 1 << 16;
/// The id in a slot.
const SLOT_BYTES: usize = size_of::<u32>();
/// The cache, unless the config says otherwise.
const CACHE_BYTES: usize = 1 << 20;
/// The logit of every token that the script does not say.
const UNLIKELY: f32 = -100.0;

/// A model whose answers a function gives. Each byte is a token.
#[must_use = "`build` makes the model"]
pub struct ScriptedModel {
    answer: Box<dyn FnMut(&str) -> String + Send>,
    on_pass: Box<dyn FnMut(Pass) + Send>,
    config: LoadConfig,
}

/// A forward pass of a [`ScriptedModel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pass {
    /// Requests in it.
    pub sequences: usize,
    /// Tokens it computes.
    pub tokens: usize,
}

impl ScriptedModel {
    /// A model that answers a prompt with what `answer` makes of it.
    ///
    /// The prompt of a chat has a line `role: content` for each message. A panic in `answer` is a panic
    /// in the model: the requests of that pass end with [`Error::Internal`].
    pub fn new(answer: impl FnMut(&str) -> String + Send + 'static) -> Self {
        Self { answer: Box::new(answer), on_pass: Box::new(|_| {}), config: LoadConfig::new() }
    }

    /// Calls `hook` in each forward pass, on the model's worker thread. A hook that sleeps makes a slow
    /// model; one that waits for a channel lets a test decide when the next step is taken.
    pub fn on_pass(mut self, hook: impl FnMut(Pass) + Send + 'static) -> Self {
        self.on_pass = Box::new(hook);
        self
    }

    /// Sets queue, slots, buffers and cache as for a real model. A token takes 4 bytes of
    /// [`kv_cache_bytes`](LoadConfig::kv_cache_bytes), and the context holds 65,536 unless the config
    /// says less. What only concerns weights has no effect.
    pub fn load_config(mut self, config: LoadConfig) -> Self {
        self.config = config;
        self
    }

    /// Starts the model.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], as of [`load_model`](crate::load_model).
    pub fn build(self) -> Result<Box<dyn TextModel>> {
        let Self { answer, on_pass, mut config } = self;
        config.validate()?;
        config.kv_cache_bytes.get_or_insert(CACHE_BYTES);
        let cache = CachePlan::new(&config, MAX_POSITIONS, BLOCK_TOKENS * SLOT_BYTES)?;
        let text = Arc::new(text(&config)?);
        let vocab_size = text.tokenizer.vocab_size();
        let info = ModelInfo {
            architecture: "scripted".into(),
            vocab_size,
            context_len: cache.context_len,
            ..ModelInfo::default()
        };
        let id = |token| text.tokenizer.id_of(token).ok_or_else(|| Error::internal(format!("there is no {token}")));
        let decoder = Script {
            answer,
            on_pass,
            reply: id(REPLY)?,
            end: id(END)?,
            text: text.clone(),
            slots: HashMap::new(),
            answers: HashMap::new(),
        };
        let options = Options {
            name: "scripted".into(),
            context_len: cache.context_len,
            vocab_size,
            queue_limit: config.queue_limit,
            stream_buffer: config.stream_buffer,
            threads: Some(1),
            isa: config.isa()?,
            limits: cache.limits(&config),
            weight_bytes: 0,
            block_bytes: BLOCK_TOKENS * SLOT_BYTES,
        };
        Ok(Box::new(LocalModel::new(info, Engine::start(Box::new(decoder), text, options)?, None)))
    }
}

/// A decoder that knows a sequence, as any decoder does, only by what its cache holds.
struct Script {
    answer: Box<dyn FnMut(&str) -> String + Send>,
    on_pass: Box<dyn FnMut(Pass) + Send>,
    text: Arc<TextProcessor>,
    reply: u32,
    end: u32,
    /// The token in each slot of the cache.
    slots: HashMap<usize, u32>,
    /// Answers by prompt, each ended.
    answers: HashMap<Vec<u32>, Vec<u32>>,
}

/// Answers that are remembered.
const MAX_ANSWERS: usize = 1024;

impl Forward for Script {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        (self.on_pass)(Pass { sequences: batch.spans.len(), tokens: batch.tokens.len() });
        for span in &batch.spans {
            for row in span.start..span.start + span.len {
                self.slots.insert(span.slot(batch.positions[row] as usize, BLOCK_TOKENS), batch.tokens[row]);
            }
        }
        let mut logits = Vec::new();
        for span in &batch.spans {
            let rows = span.start as u32..(span.start + span.len) as u32;
            for row in batch.sampled.iter().filter(|row| rows.contains(row)) {
                logits.extend(self.logits(span, batch.positions[*row as usize] as usize)?);
            }
        }
        Ok(logits)
    }
}

impl Script {
    /// After the token at a position.
    fn logits(&mut self, span: &Span, position: usize) -> Result<Vec<f32>> {
        let context: Option<Vec<u32>> =
            (0..=position).map(|position| self.slots.get(&span.slot(position, BLOCK_TOKENS)).copied()).collect();
        let context = context.ok_or_else(|| Error::internal("a slot of the cache was never written"))?;
        let next = self.next(&context)?;
        let mut logits = vec![UNLIKELY; self.text.tokenizer.vocab_size()];
        logits[next as usize] = 0.0;
        Ok(logits)
    }

    fn next(&mut self, context: &[u32]) -> Result<u32> {
        let begin = context.iter().rposition(|id| *id == self.reply).map_or(0, |reply| reply + 1);
        let (prompt, said) = context.split_at(begin);
        if !self.answers.contains_key(prompt) {
            let prompt_text = self.text.tokenizer.decode(&prompt[..begin.saturating_sub(1)])?;
            let mut answer = self.text.tokenizer.encode_plain(&(self.answer)(&prompt_text))?;
            answer.push(self.end);
            if self.answers.len() >= MAX_ANSWERS {
                self.answers.clear();
            }
            self.answers.insert(prompt.to_vec(), answer);
        }
        Ok(self.answers.get(prompt).and_then(|answer| answer.get(said.len())).copied().unwrap_or(self.end))
    }
}

/// A token for each byte, and two control tokens.
fn text(config: &LoadConfig) -> Result<TextProcessor> {
    let failed = |error: tokenizers::Error| Error::Internal {
        reason: "the scripted model's tokenizer is unusable".into(),
        source: Some(error.into()),
    };
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocabulary: Vocab = alphabet.into_iter().map(String::from).zip(0..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocabulary, Vec::new()).build();
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.map_err(failed)?);
    let bytes = ByteLevel::new(false, true, false);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    let special = [REPLY, END].map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).map_err(failed)?;
    let reply = tokenizer.token_to_id(REPLY).unwrap_or_default();
    let mut appended = TemplateProcessing::builder();
    appended.try_single(format!("$A {REPLY}")).map_err(|error| failed(error.into()))?;
    let appended = appended.special_tokens(vec![(REPLY, reply)]).build().map_err(|error| failed(error.into()))?;
    tokenizer.with_post_processor(Some(appended));
    let tokenizer = Tokenizer::new(Path::new("scripted"), tokenizer)?;
    let end_of_text = tokenizer.id_of(END);
    let template = config.chat_template.clone().unwrap_or_else(|| TEMPLATE.into());
    let template = ChatTemplate::new(Path::new("scripted"), template, String::new(), END.into())?;
    Ok(TextProcessor { tokenizer, template: Some(template), end_ids: end_of_text.into_iter().collect(), end_of_text })
}
