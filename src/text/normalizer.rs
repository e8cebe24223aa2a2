//! The `normalizer` of a `tokenizer.json`: changes text before it is split into words.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper, normalizers::replace::ReplacePattern};

use super::{
    budget::TokenizeBudget,
    expansion_limit,
    pattern::{BoxError, Pattern},
};

/// The most bytes that a text may become.
const MAX_BYTES: usize = 256 << 20;
/// Bytes that steps of the tokenizers crate are given at a time where they may be.
const CHUNK_BYTES: usize = 16 << 10;
/// Bytes that the crate holds, about, for each that a step makes.
const FOREIGN_COST: f64 = 20.0;

#[derive(Default)]
pub struct Normalizer(Vec<NormalizerStep>);

enum NormalizerStep {
    Prepend(String),
    Replace {
        pattern: Pattern,
        content: String,
    },
    /// Any other step, run by the tokenizers crate.
    Foreign {
        step: Box<NormalizerWrapper>,
        /// How much longer it makes a text.
        expansion: f64,
        kind: NormalizerScope,
    },
}

/// How much text a step needs to see at a time.
#[derive(Clone, Copy, PartialEq)]
enum NormalizerScope {
    /// A character and its combining marks; ASCII stays as it is.
    Composition,
    /// A character and its combining marks.
    Characters,
    /// All of a text.
    Text,
}

impl Normalizer {
    /// Reads a `normalizer`.
    pub fn read(value: &Value) -> Result<Self, BoxError> {
        let mut steps = Vec::new();
        if !value.is_null() {
            read(value, &mut steps)?;
        }
        Ok(Self(steps))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes of a text may become one, none if that is not known.
    pub fn most_shrinking(&self) -> Option<usize> {
        self.0.iter().try_fold(1, |product, step| match step {
            NormalizerStep::Prepend(_) => Some(product),
            NormalizerStep::Replace { pattern, content } => {
                let taken = pattern.as_text()?.len();
                Some(product * taken.div_ceil(content.len().max(1)).max(1)).filter(|_| !content.is_empty())
            }
            // Three letters of a syllable are one afterwards.
            NormalizerStep::Foreign { kind: NormalizerScope::Composition, .. } => Some(product * 4),
            NormalizerStep::Foreign { .. } => None,
        })
    }

    /// The normalized text.
    pub async fn normalize<'t>(&self, text: &'t str, budget: &mut TokenizeBudget) -> Result<Cow<'t, str>, BoxError> {
        let mut text = Cow::Borrowed(text);
        for step in &self.0 {
            match step {
                NormalizerStep::Prepend(prefix) if !text.is_empty() => text.to_mut().insert_str(0, prefix),
                NormalizerStep::Prepend(_) => {}
                NormalizerStep::Replace { pattern, content } => {
                    if let Some(replaced) = replaced(&text, pattern, content, budget).await? {
                        text = replaced.into();
                    }
                }
                NormalizerStep::Foreign { kind: NormalizerScope::Composition, .. } if text.is_ascii() => {}
                NormalizerStep::Foreign { step, expansion, kind } => {
                    let mut made = String::with_capacity(text.len());
                    let mut rest = &*text;
                    while !rest.is_empty() {
                        let (chunk, after) =
                            rest.split_at(if *kind == NormalizerScope::Text { rest.len() } else { chunk(rest) });
                        let longest = chunk.len() as f64 * expansion;
                        check_len(longest * FOREIGN_COST + made.len() as f64)?;
                        let mut normalized = NormalizedString::from(chunk);
                        step.normalize(&mut normalized)?;
                        made.push_str(normalized.get());
                        rest = after;
                        budget.yield_if_due().await;
                    }
                    text = made.into();
                }
            }
        }
        Ok(text)
    }

    /// The normalized text, without yielding.
    pub fn normalize_now(&self, text: &str) -> Result<String, BoxError> {
        let mut budget = TokenizeBudget::unlimited();
        super::budget::at_once(self.normalize(text, &mut budget)).ok_or("it was not done at once")?.map(Cow::into_owned)
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        *text = NormalizedString::from(self.normalize_now(text.get())?);
        Ok(())
    }
}

fn read(value: &Value, steps: &mut Vec<NormalizerStep>) -> Result<(), BoxError> {
    #[derive(Deserialize)]
    struct ReplaceFields {
        pattern: ReplacePattern,
        content: String,
    }
    if let Some(inner) = value.get("normalizers").and_then(Value::as_array) {
        return inner.iter().try_for_each(|value| read(value, steps));
    }
    let kind = match value["type"].as_str().unwrap_or_default() {
        "Prepend" => {
            steps.push(NormalizerStep::Prepend(value["prepend"].as_str().ok_or("prepend is missing")?.to_owned()));
            return Ok(());
        }
        "Replace" => {
            let ReplaceFields { pattern, content } = ReplaceFields::deserialize(value)?;
            let pattern = match &pattern {
                ReplacePattern::String(text) => Pattern::text(text)?,
                ReplacePattern::Regex(pattern) => Pattern::regex(pattern)?,
            };
            steps.push(NormalizerStep::Replace { pattern, content });
            return Ok(());
        }
        "NFC" | "NFD" | "NFKC" | "NFKD" => NormalizerScope::Composition,
        "Lowercase" | "Nmt" | "Precompiled" | "ByteLevel" | "StripAccents" => NormalizerScope::Characters,
        _ => NormalizerScope::Text,
    };
    let step = Box::new(serde_json::from_value(value.clone())?);
    steps.push(NormalizerStep::Foreign { step, expansion: expansion_limit::expansion(value), kind });
    Ok(())
}

/// The text with `content` for all matches, none if there are no matches.
async fn replaced(
    text: &str,
    pattern: &Pattern,
    content: &str,
    budget: &mut TokenizeBudget,
) -> Result<Option<String>, BoxError> {
    let (mut made, mut at, mut scan) = (String::new(), 0, pattern.scan());
    while let Some((start, end)) = scan.next(text)? {
        check_len(made.len() as f64 + (start - at + content.len()) as f64)?;
        made.push_str(&text[at..start]);
        made.push_str(content);
        at = end;
        budget.yield_if_due().await;
    }
    if at == 0 && made.is_empty() {
        return Ok(None);
    }
    made.push_str(&text[at..]);
    Ok(Some(made))
}

fn check_len(len: f64) -> Result<(), BoxError> {
    let most = MAX_BYTES as f64;
    if len > most { Err(format!("the normalizer makes a text of more than {most} bytes").into()) } else { Ok(()) }
}

/// Bytes of a text that are normalized on their own.
fn chunk(text: &str) -> usize {
    let chars = || text.char_indices().skip_while(|(at, _)| *at < CHUNK_BYTES);
    let pairs = chars().zip(chars().skip(1));
    pairs
        .into_iter()
        .find(|((_, a), (_, b))| stands_alone(*a) && stands_alone(*b))
        .map_or(text.len(), |(_, (at, _))| at)
}

/// Whether a character neither combines with one before it nor joins one after it.
fn stands_alone(c: char) -> bool {
    matches!(
        c,
        ' '..='~'
            | 'À'..='ž'
            | 'Α'..='ώ'
            | 'А'..='я'
            | 'א'..='ת'
            | 'ء'..='غ'
            | 'ف'..='ي'
            | 'ก'..='ฮ'
            | 'ぁ'..='ゖ'
            | 'ァ'..='ヺ'
            | '一'..='\u{9fff}'
            | '가'..='힣'
    )
}
