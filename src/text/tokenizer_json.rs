//! The parts of a `tokenizer.json`, checked before anything is built from them.

use std::path::Path;

use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, NormalizerWrapper, PostProcessorWrapper, PreTokenizedString,
    PreTokenizerWrapper, TokenizerImpl, decoders::fuse::Fuse, normalizers, pre_tokenizers,
};

use super::{
    added_token_finder, expansion_limit, normalizer::Normalizer, pattern::BoxError, pre_tokenizer::PreTokenizer,
    token_decoder::TokenDecoder, tokenizer::guarded,
};
use crate::{Error, Result};

/// How deep steps may be nested.
const MAX_DEPTH: usize = 16;
/// PreTokenizer that there may be.
const MAX_STEPS: usize = 256;

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct TokenizerJson {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    added_tokens: Vec<AddedTokenText>,
}

/// The steps before and after the model.
pub struct TokenizerSteps {
    pub normalizer: Normalizer,
    pub pre_tokenizer: PreTokenizer,
    pub decoder: TokenDecoder,
}

#[derive(Deserialize)]
struct AddedTokenText {
    content: String,
}

impl TokenizerJson {
    /// Reads a `tokenizer.json`, and refuses parts that would take too much time or memory.
    pub fn read(path: &Path, json: &[u8]) -> Result<Self> {
        let parts: Self =
            serde_json::from_slice(json).map_err(|error| Error::model_because(path, "is not a tokenizer", error))?;
        for (field, value) in [
            ("normalizer", &parts.normalizer),
            ("pre_tokenizer", &parts.pre_tokenizer),
            ("post_processor", &parts.post_processor),
            ("decoder", &parts.decoder),
        ] {
            check_steps(value).map_err(|error| Error::model(path, format!("{field}: {error}")))?;
        }
        expansion_limit::check(path, &parts)?;
        let texts = parts.added_tokens.iter().map(|token| &*token.content);
        added_token_finder::check(texts).map_err(|error| Error::model(path, format!("added_tokens: {error}")))?;
        Ok(parts)
    }

    /// The parts of a tokenizer that was made in another way.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, BoxError> {
        Ok(Self {
            normalizer: serde_json::to_value(tokenizer.get_normalizer())?,
            pre_tokenizer: serde_json::to_value(tokenizer.get_pre_tokenizer())?,
            decoder: serde_json::to_value(tokenizer.get_decoder())?,
            ..Self::default()
        })
    }

    /// The steps before and after the model, with patterns compiled.
    pub fn steps(&self, path: &Path) -> Result<TokenizerSteps> {
        let bad = |field: &'static str| move |error: BoxError| Error::model(path, format!("{field}: {error}"));
        Ok(TokenizerSteps {
            normalizer: guarded(|| Normalizer::read(&self.normalizer)).map_err(bad("normalizer"))?,
            pre_tokenizer: guarded(|| PreTokenizer::read(&self.pre_tokenizer)).map_err(bad("pre_tokenizer"))?,
            decoder: guarded(|| TokenDecoder::read(&self.decoder)).map_err(bad("decoder"))?,
        })
    }

    /// All of the file but the steps before and after the model, whose patterns the crate would compile.
    pub fn tokenizer(&self, json: &[u8]) -> Result<tokenizers::Tokenizer, BoxError> {
        type Rest = TokenizerImpl<ModelWrapper, SkippedField, SkippedField, PostProcessorWrapper, SkippedField>;
        let mut tokenizer: Rest = serde_json::from_slice(json)?;
        tokenizer.with_normalizer(None::<SkippedField>)?;
        tokenizer.with_pre_tokenizer(None::<SkippedField>);
        tokenizer.with_decoder(None::<SkippedField>);
        Ok(tokenizer.into())
    }
}

/// Counts steps before anything goes through them by itself.
fn check_steps(value: &Value) -> Result<(), BoxError> {
    let (mut count, mut level) = (0, vec![value]);
    for _ in 0..MAX_DEPTH {
        let fields = level.into_iter().flat_map(|step| step.as_object().into_iter().flat_map(|fields| fields.values()));
        level = fields.filter_map(Value::as_array).flatten().collect();
        if level.is_empty() {
            return Ok(());
        }
        count += level.iter().filter(|step| step.get("type").is_some()).count();
        if count > MAX_STEPS {
            return Err(format!("it has more than {MAX_STEPS} steps").into());
        }
    }
    Err(format!("its steps are nested more than {MAX_DEPTH} deep").into())
}

/// A part that the tokenizers crate does not read.
struct SkippedField;

impl<'de> Deserialize<'de> for SkippedField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl tokenizers::Normalizer for SkippedField {
    fn normalize(&self, _: &mut NormalizedString) -> tokenizers::Result<()> {
        Ok(())
    }
}

impl tokenizers::PreTokenizer for SkippedField {
    fn pre_tokenize(&self, _: &mut PreTokenizedString) -> tokenizers::Result<()> {
        Ok(())
    }
}

impl tokenizers::Decoder for SkippedField {
    fn decode_chain(&self, tokens: Vec<String>) -> tokenizers::Result<Vec<String>> {
        Ok(tokens)
    }
}

impl From<SkippedField> for DecoderWrapper {
    fn from(_: SkippedField) -> Self {
        Fuse::new().into()
    }
}

impl From<SkippedField> for NormalizerWrapper {
    fn from(_: SkippedField) -> Self {
        normalizers::Sequence::new(Vec::new()).into()
    }
}

impl From<SkippedField> for PreTokenizerWrapper {
    fn from(_: SkippedField) -> Self {
        pre_tokenizers::sequence::Sequence::new(Vec::new()).into()
    }
}
