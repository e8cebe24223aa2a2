//! Words of messages, whose tokens are never control tokens.

use std::fmt;

use tokenizers::{Model as _, ModelWrapper, Token};

use super::{control_tokens::ControlTokens, pattern::BoxError};

/// How often a word is cut anew where control tokens come of its parts, before it is cut into characters.
const MAX_CUTS: usize = 16;

/// A text that only a control token can write.
#[derive(Debug)]
pub struct Unwritable(String);

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "only a control token of this model writes {:?}", self.0)
    }
}

impl std::error::Error for Unwritable {}

/// The ids of a word, which is cut for as long as control tokens come of it.
pub fn tokenize(model: &ModelWrapper, control: &ControlTokens, word: &str) -> Result<Vec<u32>, BoxError> {
    let words = PlainWords { model, control };
    Ok(words.tokenize(word, 0)?.into_iter().map(|token| token.id).collect())
}

struct PlainWords<'a> {
    model: &'a ModelWrapper,
    control: &'a ControlTokens,
}

impl PlainWords<'_> {
    fn tokenize(&self, word: &str, cuts: usize) -> Result<Vec<Token>, BoxError> {
        let tokens = self.model.tokenize(word)?;
        let is_control = |token: &&Token| {
            let (from, end) = token.offsets;
            self.control.is_control(self.model, token.id, word.get(from..end).unwrap_or(word))
        };
        let inside = |token: &Token| {
            let (from, end) = token.offsets;
            let inner: Vec<usize> =
                word.get(from..end).unwrap_or(word).char_indices().map(|(at, _)| from + at).collect();
            // One of a single character stands alone.
            if inner.len() > 1 { vec![inner[inner.len() / 2]] } else { vec![from, end] }
        };
        let mut at: Vec<usize> = tokens.iter().filter(is_control).flat_map(inside).collect();
        if at.is_empty() {
            return Ok(tokens);
        }
        if cuts == MAX_CUTS {
            at = word.char_indices().map(|(at, _)| at).collect();
        }
        at.retain(|at| (1..word.len()).contains(at) && word.is_char_boundary(*at));
        at.dedup();
        if at.is_empty() {
            return self.spell(word);
        }
        let (mut tokens, mut from) = (Vec::new(), 0);
        for end in at.into_iter().chain([word.len()]) {
            let part = self.tokenize(&word[from..end], cuts + 1)?;
            tokens.extend(part.into_iter().map(|token| Token::new(token.id, token.value, (from, end))));
            from = end;
        }
        Ok(tokens)
    }

    /// The bytes of a character, or what stands for one that is in no token.
    fn spell(&self, character: &str) -> Result<Vec<Token>, BoxError> {
        let byte = |byte: u8| {
            let name = format!("<0x{byte:02X}>");
            self.model.token_to_id(&name).map(|id| Token::new(id, name, (0, character.len())))
        };
        if let Some(bytes) = character.bytes().map(byte).collect() {
            return Ok(bytes);
        }
        let unknown = self.control.unknown(self.model).ok_or_else(|| Unwritable(character.to_owned()))?;
        Ok(vec![Token::new(unknown, String::new(), (0, character.len()))])
    }
}
