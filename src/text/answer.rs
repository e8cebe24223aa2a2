use std::{collections::VecDeque, sync::Arc};

use super::{TextProcessor, detokenizer::Detokenizer};
use crate::{Result, Token, TokenLogprobs};

/// The answer as far as it is generated: gives each token its text, and holds tokens back while
/// their text is undecided — an unfinished character, or what may become a stop string.
pub struct Answer {
    detokenizer: Detokenizer,
    stops: Vec<String>,
    held: VecDeque<Token>,
    held_text: String,
    /// Tokens that are still to come before a stop string counts.
    unstoppable: usize,
    /// Bytes of the held text that are theirs: no stop string that ends there counts.
    unstoppable_len: usize,
}

/// What became of a token.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// The tokens whose text is decided now.
    pub ready: Vec<Token>,
    /// Whether a stop string came; then the answer is over.
    pub stopped: bool,
}

impl Answer {
    pub fn new(text: Arc<TextProcessor>, stops: Vec<String>) -> Self {
        let (held, held_text) = Default::default();
        Self { detokenizer: Detokenizer::new(text), stops, held, held_text, unstoppable: 0, unstoppable_len: 0 }
    }

    /// Lets stop strings count only if they end after that many tokens.
    pub fn going_on_for(self, min_tokens: usize) -> Self {
        Self { unstoppable: min_tokens, ..self }
    }

    /// Adds a generated token.
    pub fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Result<Step> {
        let text = self.detokenizer.push(id)?;
        let decided = text.is_some();
        let text = text.unwrap_or_default();
        self.held_text += &text;
        if self.unstoppable > 0 {
            self.unstoppable -= 1;
            self.unstoppable_len = self.held_text.len();
        }
        self.held.push_back(Token { id, text, logprobs });
        if !decided {
            return Ok(Step { ready: Vec::new(), stopped: false });
        }
        match self.stops.iter().filter_map(|stop| self.find(stop)).min() {
            Some(end) => Ok(Step { ready: self.cut(end), stopped: true }),
            None => Ok(Step { ready: self.release(self.held_text.len() - self.undecided_len()), stopped: false }),
        }
    }

    /// The tokens that are still held when no more come.
    pub fn finish(&mut self) -> Result<Vec<Token>> {
        let rest = self.detokenizer.finish()?;
        if let Some(last) = self.held.back_mut() {
            last.text += &rest;
        }
        self.held_text.clear();
        Ok(self.held.drain(..).collect())
    }

    /// Where a stop string begins that counts.
    fn find(&self, stop: &str) -> Option<usize> {
        let from = self.held_text.ceil_char_boundary((self.unstoppable_len + 1).saturating_sub(stop.len()));
        self.held_text[from..].find(stop).map(|at| from + at)
    }

    /// Bytes at the end that may be the beginning of a stop string.
    fn undecided_len(&self) -> usize {
        let text = &self.held_text;
        let begins = |len: &usize| {
            let tail = text.as_bytes()[text.len() - len..].as_ref();
            self.stops.iter().any(|stop| stop.as_bytes().starts_with(tail))
        };
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        (1..=longest.min(text.len())).rev().find(begins).unwrap_or(0)
    }

    /// Lets go of the tokens that end within the first `len` bytes.
    fn release(&mut self, len: usize) -> Vec<Token> {
        let (mut ready, mut end) = (Vec::new(), 0);
        while let Some(token) = self.held.front()
            && end + token.text.len() <= len
        {
            end += token.text.len();
            ready.extend(self.held.pop_front());
        }
        self.held_text.drain(..end);
        self.unstoppable_len = self.unstoppable_len.saturating_sub(end);
        ready
    }

    /// The tokens before byte `end`, the last one cut there; the others are dropped.
    fn cut(&mut self, end: usize) -> Vec<Token> {
        let mut ready = self.release(end);
        let left = end - ready.iter().map(|token| token.text.len()).sum::<usize>();
        if left > 0
            && let Some(mut token) = self.held.pop_front()
        {
            token.text.truncate(left);
            ready.push(token);
        }
        self.held.clear();
        self.held_text.clear();
        ready
    }
}
