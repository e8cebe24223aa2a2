use std::sync::Arc;

use super::TextProcessor;
use crate::Result;

/// Turns ids into text one by one, so that the pieces together are the decoding of the whole.
///
/// Decoders look back at most one token (whether a space belongs before a word), so the tokens of
/// the piece before are decoded again with the new ones.
pub struct Detokenizer {
    text: Arc<TextProcessor>,
    /// The tokens of the last piece, then those that have given no text yet.
    ids: Vec<u32>,
    given: usize,
}

impl Detokenizer {
    pub fn new(text: Arc<TextProcessor>) -> Self {
        Self { text, ids: Vec::new(), given: 0 }
    }

    /// The text that a token adds; `None` while it ends inside a character.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.text.tokenizer.is_special(id) {
            return Ok((self.given == self.ids.len()).then(String::new));
        }
        self.ids.push(id);
        let (piece, finished) = self.piece()?;
        if !finished {
            return Ok(None);
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(Some(piece))
    }

    /// What is left when no more tokens come: an unfinished character.
    pub fn finish(&mut self) -> Result<String> {
        let (piece, _) = self.piece()?;
        self.given = self.ids.len();
        Ok(piece)
    }

    /// The text of the tokens that have given none yet, and whether it ends with a whole character.
    fn piece(&self) -> Result<(String, bool)> {
        let decode = |ids| self.text.tokenizer.decode(ids);
        let (before, all) = (decode(&self.ids[..self.given])?, decode(&self.ids)?);
        let piece = match all.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            // Bytes that are no character may change how a decoder sees the bytes before them.
            None => decode(&self.ids[self.given..])?,
        };
        Ok((piece, !all.ends_with(char::REPLACEMENT_CHARACTER)))
    }
}
