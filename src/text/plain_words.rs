//! Words of messages, which are tokenized so that no control token comes of them.

use std::{fmt, ops::Range};

use tokenizers::{Model as _, ModelWrapper};

use super::{budget::TokenizeBudget, control_tokens::ControlTokens, pattern::BoxError, subword::SubwordModel};

/// How often a word is cut anew where control tokens come of its parts, before it is cut into characters.
const MAX_CUTS: usize = 16;

/// A text that only a control token of the vocabulary covers.
#[derive(Debug)]
pub struct Unwritable(String);

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "only a control token of this model writes {:?}", self.0)
    }
}

impl std::error::Error for Unwritable {}

/// Splits words into tokens none of which is a control token.
pub struct PlainWords<'a> {
    pub subwords: &'a SubwordModel,
    pub model: &'a ModelWrapper,
    pub control: &'a ControlTokens,
}

impl PlainWords<'_> {
    /// The ids of a word, which is cut for as long as control tokens come of it.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work.
    pub async fn tokenize(&self, word: &str, budget: &mut TokenizeBudget) -> Result<Vec<u32>, BoxError> {
        let mut ids = Vec::new();
        // Parts that are still to be tokenized, the next one on top, and how often each was cut.
        let mut parts = vec![(0..word.len(), 0)];
        while let Some((part, cuts)) = parts.pop() {
            let text = &word[part.clone()];
            let mut tokens = Vec::new();
            let emit = |id, range| tokens.push((id, range));
            self.subwords.tokenize(self.model, text, budget, emit).await?;
            let mut at: Vec<usize> = tokens
                .iter()
                .filter(|token| self.is_control(text, token))
                .flat_map(|(_, range)| inside(text, range))
                .collect();
            if at.is_empty() {
                ids.extend(tokens.into_iter().map(|(id, _)| id));
                continue;
            }
            if cuts == MAX_CUTS {
                at = text.char_indices().map(|(at, _)| at).collect();
            }
            at.retain(|at| (1..text.len()).contains(at) && text.is_char_boundary(*at));
            // Several tokens may have the bytes of one character.
            at.sort_unstable();
            at.dedup();
            if at.is_empty() {
                ids.extend(self.spell(text)?);
                continue;
            }
            let mut end = part.end;
            for start in at.into_iter().rev().map(|at| part.start + at).chain([part.start]) {
                parts.push((start..end, cuts + 1));
                end = start;
            }
            budget.yield_if_due().await;
        }
        Ok(ids)
    }

    fn is_control(&self, word: &str, (id, range): &(u32, Range<usize>)) -> bool {
        self.control.is_control(self.model, *id, word.get(range.clone()).unwrap_or(word))
    }

    /// The byte tokens of a character, or the unknown token.
    fn spell(&self, character: &str) -> Result<Vec<u32>, BoxError> {
        let byte = |byte: u8| self.model.token_to_id(&format!("<0x{byte:02X}>"));
        if let Some(bytes) = character.bytes().map(byte).collect() {
            return Ok(bytes);
        }
        let unknown = self.control.unknown(self.model).ok_or_else(|| Unwritable(character.to_owned()))?;
        Ok(vec![unknown])
    }
}

/// Where to cut a word so that a token of it is cut, too.
fn inside(word: &str, token: &Range<usize>) -> Vec<usize> {
    let text = word.get(token.clone()).unwrap_or(word);
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| token.start + at).collect();
    // One of a single character stands alone.
    if starts.len() > 1 { vec![starts[starts.len() / 2]] } else { vec![token.start, token.end] }
}
