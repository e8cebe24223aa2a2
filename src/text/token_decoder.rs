//! How tokens become text: the `decoder` of a `tokenizer.json`.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Decoder as _, DecoderWrapper, normalizers::replace::ReplacePattern};

use super::{
    byte_level,
    pattern::{BoxError, Pattern},
};

/// The steps that make text of tokens, one after the other.
pub struct TokenDecoder {
    steps: Vec<DecoderStep>,
    /// Whether there is no decoder: tokens are joined by spaces.
    is_missing: bool,
    pub kind: DecoderKind,
}

enum DecoderStep {
    Replace {
        pattern: Pattern,
        content: String,
    },
    /// Takes a character away, at most `start` and `stop` times from both ends of each token.
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Any other step, run by the tokenizers crate.
    Foreign(DecoderWrapper),
}

/// How much context decides the text of a token.
pub enum DecoderKind {
    /// Tokens are bytes, written as the characters of GPT-2.
    Bytes,
    /// A token is a text of its own, or a byte.
    Pieces(PieceDecoder),
    /// The text of a token depends on its neighbors.
    InContext,
}

/// The decoder of SentencePiece's tokens.
pub struct PieceDecoder {
    /// Steps that change each token's text by itself.
    num_steps: usize,
    /// Whether there are tokens that are a byte each, such as `<0x0A>`.
    has_bytes: bool,
    /// A text as a whole loses at most that many of this character at its beginning.
    pub strips: Option<(char, usize)>,
}

/// A decoded token.
#[derive(Debug, PartialEq)]
pub enum DecodedPiece {
    Text(String),
    Byte(u8),
}

impl TokenDecoder {
    /// Reads a `decoder`.
    pub fn read(value: &Value) -> Result<Self, BoxError> {
        let mut steps = Vec::new();
        if !value.is_null() {
            read(value, &mut steps)?;
        }
        let kind = if value.is_null() { DecoderKind::InContext } else { DecoderKind::of(&steps) };
        Ok(Self { kind, steps, is_missing: value.is_null() })
    }

    /// The text of tokens.
    pub fn decode(&self, tokens: Vec<String>) -> Result<String, BoxError> {
        if self.is_missing { Ok(tokens.join(" ")) } else { Ok(run(&self.steps, tokens)?.concat()) }
    }

    /// Decodes one token by itself.
    pub fn piece(&self, token: String, pieces: &PieceDecoder) -> Result<DecodedPiece, BoxError> {
        let text = run(&self.steps[..pieces.num_steps], vec![token])?.concat();
        let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|_| pieces.has_bytes);
        let byte = hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        Ok(byte.map_or(DecodedPiece::Text(text), DecodedPiece::Byte))
    }
}

impl DecoderKind {
    fn of(steps: &[DecoderStep]) -> Self {
        use DecoderStep::Foreign;
        match steps {
            [Foreign(DecoderWrapper::ByteLevel(_))]
            | [Foreign(DecoderWrapper::ByteLevel(_)), Foreign(DecoderWrapper::Fuse(_))] => Self::Bytes,
            steps => PieceDecoder::of(steps).map_or(Self::InContext, Self::Pieces),
        }
    }
}

impl PieceDecoder {
    fn of(steps: &[DecoderStep]) -> Option<Self> {
        use DecoderStep::{Foreign, Replace, Strip};
        let num_steps = steps.iter().take_while(|step| matches!(step, Replace { .. } | Strip { .. })).count();
        let (has_bytes, rest) = match &steps[num_steps..] {
            [Foreign(DecoderWrapper::ByteFallback(_)), rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let strips = match rest {
            [] | [Foreign(DecoderWrapper::Fuse(_))] => None,
            [Foreign(DecoderWrapper::Fuse(_)), Strip { content, start, stop: 0 }] => Some((*content, *start)),
            _ => return None,
        };
        Some(Self { num_steps, has_bytes, strips })
    }
}

fn run(steps: &[DecoderStep], tokens: Vec<String>) -> Result<Vec<String>, BoxError> {
    steps.iter().try_fold(tokens, |tokens, step| step.run(tokens))
}

impl DecoderStep {
    fn run(&self, tokens: Vec<String>) -> Result<Vec<String>, BoxError> {
        match self {
            Self::Replace { pattern, content } => {
                tokens.into_iter().map(|token| replaced(token, pattern, content)).collect()
            }
            Self::Strip { content, start, stop } => {
                Ok(tokens.iter().map(|token| stripped(token, *content, (*start, *stop)).to_owned()).collect())
            }
            Self::Foreign(_) if tokens.is_empty() => Ok(tokens),
            Self::Foreign(step) => step.decode_chain(tokens),
        }
    }
}

fn replaced(token: String, pattern: &Pattern, content: &str) -> Result<String, BoxError> {
    let (mut made, mut at, mut matches) = (String::new(), 0, pattern.scan());
    // Nothing is found in an empty token.
    while !token.is_empty()
        && let Some((start, end)) = matches.next(&token)?
    {
        made.push_str(&token[at..start]);
        made.push_str(content);
        at = end;
    }
    if at == 0 && made.is_empty() {
        return Ok(token);
    }
    made.push_str(&token[at..]);
    Ok(made)
}

/// A token without the characters that it loses at both ends.
fn stripped(token: &str, content: char, (start, stop): (usize, usize)) -> &str {
    let count = |chars: &mut dyn Iterator<Item = char>, most| chars.take(most).take_while(|c| *c == content).count();
    let (before, after) = (count(&mut token.chars(), start), count(&mut token.chars().rev(), stop));
    let (from, end) = (before * content.len_utf8(), token.len() - after * content.len_utf8());
    token.get(from..end).unwrap_or_default()
}

fn read(value: &Value, steps: &mut Vec<DecoderStep>) -> Result<(), BoxError> {
    #[derive(Deserialize)]
    struct DecoderReplace {
        pattern: ReplacePattern,
        content: String,
    }
    #[derive(Deserialize)]
    struct DecoderStrip {
        content: char,
        start: usize,
        stop: usize,
    }
    let has = |key: &str| value.get(key).is_some();
    // Older files do not name the types of steps.
    let kind = match value["type"].as_str() {
        Some(kind) => kind,
        None if has("decoders") => "Sequence",
        None if has("pattern") => "Replace",
        None if has("stop") => "Strip",
        None => "",
    };
    match kind {
        "Sequence" => {
            let inner = value["decoders"].as_array().ok_or("decoders is not an array")?;
            return inner.iter().try_for_each(|value| read(value, steps));
        }
        "Replace" => {
            let DecoderReplace { pattern, content } = DecoderReplace::deserialize(value)?;
            let pattern = match &pattern {
                ReplacePattern::String(text) => Pattern::text(text)?,
                ReplacePattern::Regex(pattern) => token_pattern(pattern)?,
            };
            steps.push(DecoderStep::Replace { pattern, content });
        }
        "Strip" => {
            let DecoderStrip { content, start, stop } = DecoderStrip::deserialize(value)?;
            steps.push(DecoderStep::Strip { content, start, stop });
        }
        _ => steps.push(DecoderStep::Foreign(serde_json::from_value(value.clone())?)),
    }
    Ok(())
}

/// A pattern that runs on each token, between the passes of the model: only an automaton is quick enough.
fn token_pattern(pattern: &str) -> Result<Pattern, BoxError> {
    let compiled = Pattern::regex(pattern)?;
    if !compiled.is_linear() {
        return Err(format!("the pattern {pattern:?} looks around or back: decoders have no such patterns").into());
    }
    Ok(compiled)
}

/// The bytes of a byte-level token. A token with characters that stand for no byte is taken literally.
pub fn bytes(token: String) -> Vec<u8> {
    static BYTES: LazyLock<[Option<u8>; 324]> = LazyLock::new(|| {
        let mut bytes = [None; 324];
        for (byte, c) in (0..=u8::MAX).zip(byte_level::chars()) {
            if let Some(slot) = bytes.get_mut(*c as usize) {
                *slot = Some(byte);
            }
        }
        bytes
    });
    let byte = |c: char| BYTES.get(c as usize).copied().flatten();
    token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.into_bytes())
}
