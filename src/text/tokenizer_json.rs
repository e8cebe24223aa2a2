//! The parts of a `tokenizer.json`, looked at before anything is made of them.

use std::path::Path;

use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizedString, NormalizerWrapper, PostProcessorWrapper, PreTokenizedString,
    PreTokenizerWrapper, TokenizerImpl, normalizers, pre_tokenizers,
};

use super::{
    added_token_finder, expansion_limit,
    normalizer::Normalizer,
    pattern::{BoxError, Pattern},
    pre_tokenizer::PreTokenizer,
    tokenizer::guarded,
};
use crate::{Error, Result};

/// How deep steps may be nested.
const MAX_DEPTH: usize = 16;
/// PreTokenizer that there may be.
const MAX_STEPS: usize = 256;
/// Memory for a pattern of a decoder.
const MAX_PATTERN_BYTES: usize = 1 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct TokenizerJson {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    added_tokens: Vec<AddedTokenText>,
}

#[derive(Deserialize)]
struct AddedTokenText {
    content: String,
}

impl TokenizerJson {
    /// Reads them of a `tokenizer.json`, and refuses those that take too much.
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
        check_decoder(&parts.decoder).map_err(|error| Error::model(path, format!("decoder: {error}")))?;
        Ok(parts)
    }

    /// Those of a tokenizer that was made in another way.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, BoxError> {
        let normalizer = serde_json::to_value(tokenizer.get_normalizer())?;
        let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
        Ok(Self { normalizer, pre_tokenizer, ..Self::default() })
    }

    pub fn normalizer(&self, path: &Path) -> Result<Normalizer> {
        guarded(|| Normalizer::read(&self.normalizer))
            .map_err(|error| Error::model(path, format!("normalizer: {error}")))
    }

    pub fn pre_tokenizer(&self, path: &Path) -> Result<PreTokenizer> {
        guarded(|| PreTokenizer::read(&self.pre_tokenizer))
            .map_err(|error| Error::model(path, format!("pre_tokenizer: {error}")))
    }

    /// All of the file but its normalizer and pre-tokenizer, whose patterns are not compiled.
    pub fn tokenizer(&self, json: &[u8]) -> Result<tokenizers::Tokenizer, BoxError> {
        type Rest = TokenizerImpl<ModelWrapper, SkippedField, SkippedField, PostProcessorWrapper, DecoderWrapper>;
        let mut tokenizer: Rest = serde_json::from_slice(json)?;
        tokenizer.with_normalizer(None::<SkippedField>)?;
        tokenizer.with_pre_tokenizer(None::<SkippedField>);
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

/// Refuses patterns of decoders, which run on each token, that could take long: all but those with one repetition.
fn check_decoder(value: &Value) -> Result<(), BoxError> {
    if let Some(pattern) = value["pattern"]["Regex"].as_str() {
        Pattern::regex(pattern)?;
        regex::RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build()?;
        if pattern.contains('(') || pattern.matches(['*', '+', '{', '?']).count() > 1 {
            return Err(
                format!("the pattern {pattern:?} is not supported: it has a group, or is repeated twice").into()
            );
        }
    }
    let inner = value.as_object().into_iter().flat_map(|fields| fields.values()).filter_map(Value::as_array);
    inner.flatten().try_for_each(check_decoder)
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
