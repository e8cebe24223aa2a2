//! Text to token ids, word by word, so that the work can yield or be cancelled at any time.

use std::sync::OnceLock;

use tokenizers::{AddedToken, Encoding, Model as _, ModelWrapper, PostProcessor as _, Token};

use super::{
    added_token_finder::AddedTokenFinder, budget::TokenizeBudget, byte_level, control_tokens::ControlTokens,
    normalizer::Normalizer, pattern::BoxError, plain_words::PlainWords, pre_tokenizer::PreTokenizer,
    rendered_prompt::ValueSpans, subword::SubwordModel,
};
use crate::Error;

/// Bytes of a token of a Unigram model: at each place in a text, all tokens are tried that begin there.
const MAX_UNIGRAM_BYTES: usize = 512;

/// Bytes of a word whose characters are counted before it is tokenized: it may be more tokens than the context holds.
const LONG_WORD: usize = 16 << 10;

/// How control tokens in a text are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum EncodeMode<'a> {
    /// A whole text: control tokens are recognized, and the tokenizer puts its own around it.
    Document,
    /// Control tokens are recognized.
    Fragment,
    /// Control tokens are recognized, but a text where one could have a character of a value has no ids.
    Rendered(ValueSpans<'a>),
    /// Control tokens are plain text. Whether it is the first part of a text.
    Plain { first: bool },
}

/// A part of a text between added tokens.
#[derive(Clone, Copy)]
struct PlainSpan<'t> {
    text: &'t str,
    /// Whether the whole text begins with it.
    first: bool,
    /// Whether characters of it are given.
    given: bool,
}

/// Why a text has no ids.
pub enum EncodeFailure {
    Error(Error),
    /// An error of the tokenizer.
    Internal(BoxError),
    /// Characters of values could be part of a control token.
    Forged,
}

impl From<Error> for EncodeFailure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<BoxError> for EncodeFailure {
    fn from(error: BoxError) -> Self {
        Self::Internal(error)
    }
}

/// The steps of a tokenizer.
pub struct EncodePipeline {
    /// Added tokens that are matched in raw text.
    verbatim: AddedTokenFinder,
    normalizer: Normalizer,
    /// Added tokens that are matched in normalized text.
    normalized: AddedTokenFinder,
    steps: PreTokenizer,
    model: SubwordModel,
    most_bytes: OnceLock<Option<usize>>,
}

impl EncodePipeline {
    pub fn new(
        inner: &mut tokenizers::Tokenizer,
        normalizer: Normalizer,
        steps: PreTokenizer,
    ) -> Result<Self, BoxError> {
        match inner.get_model() {
            // Leaving out merges at random is for training.
            ModelWrapper::BPE(bpe) if bpe.dropout.is_some() => {
                let mut bpe = bpe.clone();
                bpe.dropout = None;
                inner.with_model(bpe);
            }
            ModelWrapper::Unigram(unigram) => {
                let longest = unigram.get_vocab().keys().map(String::len).max().unwrap_or(0);
                if longest > MAX_UNIGRAM_BYTES {
                    return Err(format!("a token has {longest} bytes, more than {MAX_UNIGRAM_BYTES}").into());
                }
            }
            _ => {}
        }
        let mut tokens: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        if !normalizer.is_empty() && tokens.iter().any(|(_, token)| token.normalized) {
            let mut added = inner.get_added_vocabulary().clone();
            added.refresh_normalized_tokens(Some(&normalizer))?;
            inner.with_added_vocabulary(added);
        }
        Ok(Self {
            verbatim: AddedTokenFinder::new(&tokens, None)?,
            normalized: AddedTokenFinder::new(&tokens, Some(&normalizer))?,
            normalizer,
            steps,
            model: SubwordModel::default(),
            most_bytes: OnceLock::new(),
        })
    }

    /// The ids of a text.
    pub async fn encode(
        &self,
        (inner, control): (&tokenizers::Tokenizer, &ControlTokens),
        text: &str,
        mode: EncodeMode<'_>,
        budget: &mut TokenizeBudget,
    ) -> Result<Vec<u32>, EncodeFailure> {
        if budget.may_exceed(text.len())
            && let Some(most) = self.most_bytes_of_a_token(inner)
        {
            budget.check(text.len() / most)?;
        }
        let is_plain = |id| matches!(mode, EncodeMode::Plain { .. }) && control.contains(id);
        let begins = mode != EncodeMode::Plain { first: false };
        let mut words = WordEncoder { pipeline: self, model: inner.get_model(), control, mode, ids: Vec::new() };
        for part in self.verbatim.parts(text, is_plain) {
            let range = part.starts_at..part.starts_at + part.text.len();
            let given = matches!(mode, EncodeMode::Rendered(values) if values.is_any_in(range));
            let Some(between) = part.between() else {
                words.push(part.id, given, budget).await?;
                continue;
            };
            let normalized = self.normalizer.normalize(between, budget).await?;
            for inner_part in self.normalized.parts(&normalized, is_plain) {
                match inner_part.between() {
                    None => words.push(inner_part.id, given, budget).await?,
                    Some(text) => {
                        let first = begins && part.starts_at == 0 && inner_part.starts_at == 0;
                        words.encode(PlainSpan { text, first, given }, budget).await?;
                    }
                }
            }
        }
        Ok(around(inner, words.ids, mode)?)
    }

    /// How many bytes of a text become one token at most, if all of them become tokens.
    fn most_bytes_of_a_token(&self, inner: &tokenizers::Tokenizer) -> Option<usize> {
        *self.most_bytes.get_or_init(|| {
            let model = inner.get_model();
            let ModelWrapper::BPE(bpe) = model else { return None };
            let known = |token: &str| model.token_to_id(token).is_some();
            let bytes = self.steps.ends_in_bytes();
            let all_known = match bytes {
                true => byte_level::chars().iter().all(|c| known(c.encode_utf8(&mut [0; 4]))),
                false => bpe.byte_fallback && (0..=255).all(|byte| known(&format!("<0x{byte:02X}>"))),
            };
            let added = inner.get_added_tokens_decoder();
            let strips = |token: &AddedToken| token.lstrip || token.rstrip;
            if !all_known || !self.steps.keeps_all() || added.values().any(strips) {
                return None;
            }
            let vocabulary = self.model.vocabulary(model);
            let longest = if bytes { vocabulary.most_chars } else { vocabulary.most_bytes };
            let added = added.values().map(|token| token.content.len()).max().unwrap_or(0);
            Some(longest.max(added).max(1) * self.normalizer.most_shrinking()?)
        })
    }
}

/// Makes ids of the parts of a text.
struct WordEncoder<'a> {
    pipeline: &'a EncodePipeline,
    model: &'a ModelWrapper,
    control: &'a ControlTokens,
    mode: EncodeMode<'a>,
    ids: Vec<u32>,
}

impl WordEncoder<'_> {
    /// Appends the id of an added token.
    async fn push(&mut self, id: Option<u32>, given: bool, budget: &mut TokenizeBudget) -> Result<(), EncodeFailure> {
        if given && id.is_some_and(|id| self.control.contains(id)) {
            return Err(EncodeFailure::Forged);
        }
        self.ids.extend(id);
        budget.spend(1)?;
        budget.yield_if_due().await;
        Ok(())
    }

    /// Appends the ids of a text that no added token is in.
    async fn encode(&mut self, span: PlainSpan<'_>, budget: &mut TokenizeBudget) -> Result<(), EncodeFailure> {
        let EncodePipeline { steps, model, .. } = self.pipeline;
        let bytes = steps.ends_in_bytes();
        let (mut words, mut written) = (steps.words(span.text, span.first), String::new());
        while let Some(word) = words.next()? {
            let mut rest = word.text();
            if bytes {
                written.clear();
                byte_level::write(rest, &mut written);
                rest = &written;
            }
            while !rest.is_empty() {
                let (word, after) = rest.split_at(if bytes { rest.len() } else { model.cut(self.model, rest) });
                if word.len() > LONG_WORD && budget.may_exceed(word.len()) {
                    let least = model.least_tokens(self.model, word, budget).await;
                    budget.check(least)?;
                }
                let before = self.ids.len();
                self.encode_word(word, span.given, budget).await?;
                budget.spend(self.ids.len() - before)?;
                budget.yield_if_due().await;
                rest = after;
            }
        }
        Ok(())
    }

    async fn encode_word(&mut self, word: &str, given: bool, budget: &mut TokenizeBudget) -> Result<(), EncodeFailure> {
        let (before, ids) = (self.ids.len(), &mut self.ids);
        self.pipeline.model.tokenize(self.model, word, budget, |id, _| ids.push(id)).await?;
        let is_plain = matches!(self.mode, EncodeMode::Plain { .. });
        if (given || is_plain) && self.control.may_be_in(self.model, &self.ids[before..], word) {
            if given {
                return Err(EncodeFailure::Forged);
            }
            self.ids.truncate(before);
            let words = PlainWords { subwords: &self.pipeline.model, model: self.model, control: self.control };
            self.ids.extend(words.tokenize(word, budget).await?);
        }
        Ok(())
    }
}

/// Runs the post-processor, which puts special tokens around a text.
fn around(inner: &tokenizers::Tokenizer, ids: Vec<u32>, mode: EncodeMode<'_>) -> Result<Vec<u32>, BoxError> {
    let Some(processor) = inner.get_post_processor() else { return Ok(ids) };
    let tokens = ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect();
    let encoding = processor.process(Encoding::from_tokens(tokens, 0), None, mode == EncodeMode::Document)?;
    Ok(encoding.get_ids().to_vec())
}
