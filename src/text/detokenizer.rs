//! Incremental detokenizing.

use std::sync::Arc;

use super::{
    TextProcessor,
    token_decoder::{DecodedPiece, DecoderKind},
};
use crate::Result;

/// Tokens at the end of a prompt that may decide the text of the first generated ones.
const CONTEXT_TOKENS: usize = 8;
/// A character has no more bytes.
const MAX_CHAR_BYTES: usize = 4;

/// Incremental detokenizer: the pieces of all ids add up to the text that the ids add to a prompt. Control tokens have
/// no text.
///
/// At most three bytes wait for the rest of their character. Where single bytes are tokens, the decoding of the whole
/// has no character of a run of them that is no UTF-8. Characters before the first wrong byte of the run have been
/// given by then: only there do the pieces differ from it.
pub struct Detokenizer {
    text: Arc<TextProcessor>,
    state: DetokenizerState,
}

enum DetokenizerState {
    Bytes(ByteState),
    Pieces(PieceState),
    InContext(ContextState),
}

impl Detokenizer {
    /// Begins after a prompt.
    pub fn new(text: Arc<TextProcessor>, prompt: &[u32]) -> Self {
        let printed = || prompt.iter().rev().copied().filter(|id| !text.tokenizer.is_special(*id));
        let mut context: Vec<u32> = printed().take(CONTEXT_TOKENS).collect();
        context.reverse();
        let state = match text.tokenizer.decoder_kind() {
            DecoderKind::Bytes => DetokenizerState::Bytes(ByteState::default()),
            DecoderKind::Pieces(pieces) => {
                let at_start = printed().nth(CONTEXT_TOKENS).is_none();
                DetokenizerState::Pieces(PieceState {
                    strips: pieces.strips.filter(|_| at_start),
                    ..PieceState::default()
                })
            }
            DecoderKind::InContext => {
                let given = context.len();
                DetokenizerState::InContext(ContextState { ids: std::mem::take(&mut context), given })
            }
        };
        let mut this = Self { text, state };
        this.pass(&context);
        this
    }

    /// Goes past tokens of the prompt.
    fn pass(&mut self, context: &[u32]) {
        let (tokenizer, mut inside_character) = (&self.text.tokenizer, true);
        for id in context {
            match (&mut self.state, tokenizer.decoder_kind()) {
                (DetokenizerState::Bytes(state), _) => {
                    state.push(&tokenizer.bytes_of(*id));
                    state.forget();
                }
                (DetokenizerState::Pieces(state), DecoderKind::Pieces(pieces)) => {
                    let piece = tokenizer.piece_of(*id, pieces).unwrap_or(DecodedPiece::Text(String::new()));
                    // Of a character that began before, nothing is known.
                    inside_character &= matches!(piece, DecodedPiece::Byte(0x80..=0xBF));
                    if !inside_character {
                        state.push(piece);
                    }
                }
                _ => {}
            }
        }
    }

    /// The text that a token adds; `None` while it ends inside a character.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let tokenizer = &self.text.tokenizer;
        if tokenizer.is_special(id) {
            return Ok((!self.waits()).then(String::new));
        }
        match (&mut self.state, tokenizer.decoder_kind()) {
            (DetokenizerState::Bytes(state), _) => Ok(state.push(&tokenizer.bytes_of(id))),
            (DetokenizerState::Pieces(state), DecoderKind::Pieces(pieces)) => {
                Ok(state.push(tokenizer.piece_of(id, pieces)?))
            }
            (DetokenizerState::Pieces(_), _) => Ok(Some(String::new())),
            (DetokenizerState::InContext(state), _) => state.push(&self.text, id),
        }
    }

    /// Whether the beginning of a character waits for its rest.
    pub fn waits(&self) -> bool {
        match &self.state {
            DetokenizerState::Bytes(state) => !state.held.is_empty(),
            DetokenizerState::Pieces(state) => !state.run.is_empty(),
            DetokenizerState::InContext(state) => state.given < state.ids.len(),
        }
    }

    /// The bytes of an unfinished character, when no more tokens come.
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.state {
            DetokenizerState::Bytes(state) => Ok(lossy(std::mem::take(&mut state.held))),
            DetokenizerState::Pieces(state) => Ok(state.end_run()),
            DetokenizerState::InContext(state) => state.finish(&self.text),
        }
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Bytes at the end that begin a character.
fn unfinished_len(bytes: &[u8]) -> usize {
    let begins = |len: &usize| {
        let tail = &bytes[bytes.len() - len..];
        std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..MAX_CHAR_BYTES.min(bytes.len() + 1)).find(begins).unwrap_or(0)
}

/// Tokens that are bytes.
#[derive(Default)]
struct ByteState {
    /// Bytes of tokens that ended inside a character.
    held: Vec<u8>,
}

impl ByteState {
    fn push(&mut self, bytes: &[u8]) -> Option<String> {
        let held_before = self.held.len();
        self.held.extend(bytes);
        let unfinished = unfinished_len(&self.held);
        let finished = self.held.len() - unfinished;
        if unfinished > 0 && (held_before == 0 || finished < held_before) {
            return None;
        }
        // The first byte of another character ends an incomplete one as a replacement character.
        let rest = self.held.split_off(finished);
        Some(lossy(std::mem::replace(&mut self.held, rest)))
    }

    /// Keeps no more than the beginning of a character.
    fn forget(&mut self) {
        let finished = self.held.len() - unfinished_len(&self.held);
        self.held.drain(..finished);
    }
}

/// Tokens that are a text or a byte. A run of bytes that is no UTF-8 becomes a replacement character for each.
#[derive(Default)]
struct PieceState {
    /// The beginning of a character.
    run: Vec<u8>,
    /// Whether a byte of this run was no part of a character.
    broken: bool,
    /// The character that the beginning of the text loses, and how often.
    strips: Option<(char, usize)>,
}

impl PieceState {
    fn push(&mut self, piece: DecodedPiece) -> Option<String> {
        let text = match piece {
            DecodedPiece::Text(text) => self.end_run() + &self.stripped(text),
            DecodedPiece::Byte(byte) => {
                self.run.push(byte);
                match std::str::from_utf8(&self.run) {
                    Ok(_) if !self.broken => {
                        let text = lossy(std::mem::take(&mut self.run));
                        self.stripped(text)
                    }
                    Err(error) if error.error_len().is_none() && !self.broken => return None,
                    _ => {
                        self.broken = true;
                        self.replaced()
                    }
                }
            }
        };
        Some(text)
    }

    fn end_run(&mut self) -> String {
        let text = self.replaced();
        self.broken = false;
        text
    }

    /// A replacement character for each byte that waits.
    fn replaced(&mut self) -> String {
        let text: String = self.run.drain(..).map(|_| char::REPLACEMENT_CHARACTER).collect();
        self.stripped(text)
    }

    fn stripped(&mut self, text: String) -> String {
        let mut rest = text.as_str();
        while let Some((stripped, count)) = self.strips
            && let Some(first) = rest.chars().next()
        {
            if first == stripped && count > 0 {
                rest = &rest[first.len_utf8()..];
                self.strips = Some((stripped, count - 1));
            } else {
                self.strips = None;
            }
        }
        if rest.len() == text.len() { text } else { rest.to_owned() }
    }
}

/// Tokens whose text depends on their neighbors. Decoders look back at most one token (whether a space belongs before a
/// word), so the tokens of the piece before are decoded again with the new ones.
struct ContextState {
    /// The tokens of the last piece, then the tokens that have no text yet.
    ids: Vec<u32>,
    given: usize,
}

impl ContextState {
    fn push(&mut self, text: &TextProcessor, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        let (piece, finished) = self.piece(text)?;
        if !finished && self.ids.len() - self.given < MAX_CHAR_BYTES {
            return Ok(None);
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(Some(piece))
    }

    fn finish(&mut self, text: &TextProcessor) -> Result<String> {
        let (piece, _) = self.piece(text)?;
        self.given = self.ids.len();
        Ok(piece)
    }

    /// The text of the tokens that have given none yet, and whether it ends with a whole character.
    fn piece(&self, text: &TextProcessor) -> Result<(String, bool)> {
        let decode = |ids| text.tokenizer.decode(ids);
        let (before, all) = (decode(&self.ids[..self.given])?, decode(&self.ids)?);
        let piece = match all.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            // Bytes that are no character may change how a decoder sees the bytes before them.
            None => decode(&self.ids[self.given..])?,
        };
        Ok((piece, !all.ends_with(char::REPLACEMENT_CHARACTER)))
    }
}
