//! How the tokens of a tokenizer become text one after the other.

use std::sync::LazyLock;

use tokenizers::{Decoder, DecoderWrapper};

/// The kind of a tokenizer's decoder.
pub enum TokenDecoder {
    /// Tokens are bytes, written as the characters of GPT-2.
    Bytes,
    /// A token is a text of its own, or a byte.
    Pieces(PieceDecoder),
    /// The text of a token depends on its neighbors.
    InContext,
}

/// What SentencePiece's tokens become.
pub struct PieceDecoder {
    /// Change a token's text.
    steps: Vec<DecoderWrapper>,
    /// Whether there are tokens that are a byte each, such as `<0x0A>`.
    has_bytes: bool,
    /// A text as a whole loses at most that many of this character at its beginning.
    pub strips: Option<(char, usize)>,
}

/// What a token is.
#[derive(Debug, PartialEq)]
pub enum DecodedPiece {
    Text(String),
    Byte(u8),
}

impl TokenDecoder {
    pub fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let steps = match decoder {
            None => return Self::InContext,
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(decoder) => std::slice::from_ref(decoder),
        };
        match steps {
            [DecoderWrapper::ByteLevel(_)] | [DecoderWrapper::ByteLevel(_), DecoderWrapper::Fuse(_)] => Self::Bytes,
            steps => PieceDecoder::of(steps).map_or(Self::InContext, Self::Pieces),
        }
    }
}

impl PieceDecoder {
    fn of(steps: &[DecoderWrapper]) -> Option<Self> {
        let own = steps.iter().take_while(|step| matches!(step, DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_)));
        let (own, rest) = steps.split_at(own.count());
        let (has_bytes, rest) = match rest {
            [DecoderWrapper::ByteFallback(_), rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let strips = match rest {
            [] | [DecoderWrapper::Fuse(_)] => None,
            [DecoderWrapper::Fuse(_), DecoderWrapper::Strip(strip)] if strip.stop == 0 => {
                Some((strip.content, strip.start))
            }
            _ => return None,
        };
        Some(Self { steps: own.to_vec(), has_bytes, strips })
    }

    pub fn piece(&self, token: String) -> tokenizers::Result<DecodedPiece> {
        let mut texts = vec![token];
        for step in &self.steps {
            texts = step.decode_chain(texts)?;
        }
        let text = texts.concat();
        let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|_| self.has_bytes);
        let byte = hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        Ok(byte.map_or(DecodedPiece::Text(text), DecodedPiece::Byte))
    }
}

/// The bytes of a byte-level token. One that has other characters than those that stand for bytes is itself.
pub fn bytes(token: String) -> Vec<u8> {
    static BYTES: LazyLock<[Option<u8>; 324]> = LazyLock::new(|| {
        let mut bytes = [None; 324];
        let mut others = 256..;
        for byte in 0..=u8::MAX {
            let stands_for_itself = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let at = if stands_for_itself { Some(usize::from(byte)) } else { others.next() };
            if let Some(slot) = at.and_then(|at| bytes.get_mut(at)) {
                *slot = Some(byte);
            }
        }
        bytes
    });
    let byte = |c: char| BYTES.get(c as usize).copied().flatten();
    token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.into_bytes())
}
