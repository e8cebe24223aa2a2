//! A model without weights, for tests of programs that use models.
//!
//! A function gives the answers of a [`ScriptedModel`]. Everything else is the real engine: queue, shared passes, paged
//! KV cache, cancellation, backpressure, stop strings, metrics. So a handler meets in milliseconds all that it would
//! meet with a real model.
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

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};

use tokenizers::{
    AddedToken,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

use crate::{
    Error, LoadConfig, ModelInfo, Result, TextModel,
    backend::native::{CacheBudget, CacheCosts, NativeModel},
    decoder::{BLOCK_TOKENS, Batch, Forward, Outputs, Span},
    engine::{Engine, EngineOptions},
    kernels::Isa,
    text::{ChatTemplate, TextProcessor, Tokenizer},
};

/// The control token between prompt and answer.
const REPLY: &str = "<|reply|>";
/// The control token that ends an answer.
const END: &str = "<|end|>";
/// A line for each message.
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}<|reply|>";
/// Tokens a sequence may hold.
const MAX_POSITIONS: usize = 1 << 16;
/// A token takes its id, and a sequence has no recurrent state.
const COSTS: CacheCosts = CacheCosts { block_bytes: BLOCK_TOKENS * size_of::<u32>(), state_bytes: 0 };
/// The default size of the cache.
const CACHE_BYTES: usize = 1 << 20;
/// The logit of all tokens but the scripted one.
const UNLIKELY: f32 = -100.0;

/// A model whose answers come from a function. Each byte is a token.
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
    /// Requests in the pass.
    pub sequences: usize,
    /// Tokens of the pass.
    pub tokens: usize,
}

impl ScriptedModel {
    /// A model that answers a prompt with `answer(prompt)`. The function is called once for each request, also for
    /// equal ones: for each prompt of `batch_generate`, `classify` and `score`, and only once if a request is
    /// preempted.
    ///
    /// The prompt of a chat has a line `role: content` for each message. A panic in `answer` is a panic of the model:
    /// the requests in the pass end with [`Error::Internal`].
    pub fn new(answer: impl FnMut(&str) -> String + Send + 'static) -> Self {
        Self { answer: Box::new(answer), on_pass: Box::new(|_| {}), config: LoadConfig::new() }
    }

    /// Calls `hook` in each forward pass, on the model's worker thread. A hook that sleeps makes a slow model; a hook
    /// that waits for a channel lets a test control each step.
    pub fn on_pass(mut self, hook: impl FnMut(Pass) + Send + 'static) -> Self {
        self.on_pass = Box::new(hook);
        self
    }

    /// Sets queue, slots, buffers and cache as for a real model. A token takes 4 bytes of
    /// [`kv_cache_bytes`](LoadConfig::kv_cache_bytes), and the context holds 65,536 tokens unless the config says less.
    /// Settings of weights have no effect.
    pub fn load_config(mut self, config: LoadConfig) -> Self {
        self.config = config;
        self
    }

    /// Starts the model.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], as [`load_model`](crate::load_model).
    pub fn build(self) -> Result<Box<dyn TextModel>> {
        let Self { answer, on_pass, mut config } = self;
        config.validate()?;
        config.kv_cache_bytes.get_or_insert(CACHE_BYTES);
        let cache = CacheBudget::new(&config, MAX_POSITIONS, COSTS)?;
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
            answered: HashMap::new(),
        };
        let options = EngineOptions {
            name: "scripted".into(),
            context_len: cache.context_len,
            vocab_size,
            queue_limit: config.queue_limit,
            stream_buffer: config.stream_buffer,
            threads: Some(1),
            isa: Isa::choose(config.instruction_set)?,
            limits: cache.limits(&config),
            weight_bytes: 0,
            block_bytes: COSTS.block_bytes,
            state_bytes: COSTS.state_bytes,
        };
        let requests = Engine::start(Box::new(decoder), text.clone(), options)?;
        Ok(Box::new(NativeModel::new(info, text, requests, None)))
    }
}

/// A decoder that, like any other, knows the tokens of a sequence from its cache only.
struct Script {
    answer: Box<dyn FnMut(&str) -> String + Send>,
    on_pass: Box<dyn FnMut(Pass) + Send>,
    text: Arc<TextProcessor>,
    reply: u32,
    end: u32,
    /// The cache, by slot.
    slots: HashMap<usize, CachedToken>,
    /// The answers of running sequences.
    answered: HashMap<u64, Answered>,
}

/// A token in the cache.
#[derive(Clone, Copy)]
struct CachedToken {
    token: u32,
    /// The position after the last [`REPLY`] of the prompt up to here; 0 if there is none.
    reply_end: usize,
    /// A hash of all tokens up to this one.
    prefix: u64,
}

/// The answers to a sequence.
#[derive(Default)]
struct Answered {
    /// Complete answers by the positions at which they begin: one, or several for a scored prompt with several replies.
    answers: Vec<(usize, Vec<u32>)>,
    /// The last position that was sampled after, and the hash of the tokens up to it.
    last: Option<(usize, u64)>,
}

impl Forward for Script {
    fn forward(&mut self, batch: &Batch) -> Result<Outputs> {
        (self.on_pass)(Pass { sequences: batch.spans.len(), tokens: batch.tokens.len() });
        let mut logits = Vec::new();
        let mut sampled = batch.sampled.iter().map(|row| *row as usize).peekable();
        for span in &batch.spans {
            for row in span.start..span.start + span.len {
                self.store(span, batch.positions[row] as usize, batch.tokens[row])?;
            }
            while let Some(row) = sampled.next_if(|row| *row < span.start + span.len) {
                logits.extend(self.logits(span, batch.positions[row] as usize)?);
            }
        }
        Ok(Outputs { logits, ..Outputs::default() })
    }

    fn forget(&mut self, sequence: u64) {
        self.answered.remove(&sequence);
    }
}

impl Script {
    /// Writes a token into the cache.
    fn store(&mut self, span: &Span, position: usize, token: u32) -> Result<()> {
        let before = position.checked_sub(1).map(|before| self.load(span, before)).transpose()?;
        let begins = token == self.reply && position < span.prompt_len;
        let reply_end = if begins { position + 1 } else { before.map_or(0, |before| before.reply_end) };
        let mut hasher = DefaultHasher::new();
        (before.map(|before| before.prefix), token).hash(&mut hasher);
        let slot = CachedToken { token, reply_end, prefix: hasher.finish() };
        self.slots.insert(span.slot(position, BLOCK_TOKENS), slot);
        Ok(())
    }

    fn load(&self, span: &Span, position: usize) -> Result<CachedToken> {
        let slot = self.slots.get(&span.slot(position, BLOCK_TOKENS));
        slot.copied().ok_or_else(|| Error::internal("a slot of the cache was never written"))
    }

    /// The logits after a position. Inside a prompt, as scoring asks for, all tokens are equally likely.
    fn logits(&mut self, span: &Span, position: usize) -> Result<Vec<f32>> {
        let vocab_size = self.text.tokenizer.vocab_size();
        let begin = match self.load(span, position)?.reply_end {
            0 if position + 1 < span.prompt_len => return Ok(vec![0.0; vocab_size]),
            0 => span.prompt_len,
            reply_end => reply_end,
        };
        let next = self.next(span, begin, position + 1)?;
        let mut logits = vec![UNLIKELY; vocab_size];
        logits[next as usize] = 0.0;
        Ok(logits)
    }

    /// The token at a position of an answer.
    fn next(&mut self, span: &Span, begin: usize, position: usize) -> Result<u32> {
        self.check(span, position - 1)?;
        let known = |answered: &Answered| answered.answers.iter().position(|(other, _)| *other == begin);
        let known = match self.answered.get(&span.sequence).and_then(known) {
            Some(known) => known,
            None => {
                let answer = self.ask(span, begin)?;
                let answers = &mut self.answered.entry(span.sequence).or_default().answers;
                answers.push((begin, answer));
                answers.len() - 1
            }
        };
        let answer = self.answered.get(&span.sequence).and_then(|answered| answered.answers.get(known));
        Ok(answer.and_then(|(_, ids)| ids.get(position - begin)).copied().unwrap_or(self.end))
    }

    /// Asks the function for an answer that begins at a position.
    fn ask(&mut self, span: &Span, begin: usize) -> Result<Vec<u32>> {
        let prompt: Result<Vec<u32>> = (0..begin).map(|position| Ok(self.load(span, position)?.token)).collect();
        let mut prompt = prompt?;
        prompt.pop_if(|last| *last == self.reply);
        let prompt = self.text.tokenizer.decode(&prompt)?;
        let mut answer = self.text.tokenizer.encode_plain(&(self.answer)(&prompt))?;
        answer.push(self.end);
        Ok(answer)
    }

    /// Checks that the cache still has the tokens that the sequence was sampled after.
    fn check(&mut self, span: &Span, position: usize) -> Result<()> {
        let prefix = self.load(span, position)?.prefix;
        let last = self.answered.entry(span.sequence).or_default().last.replace((position, prefix));
        match last {
            Some((before, prefix)) if before < position && self.load(span, before)?.prefix != prefix => {
                Err(Error::internal("the cache has other tokens than the sequence"))
            }
            _ => Ok(()),
        }
    }
}

/// A tokenizer of bytes and two control tokens.
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
