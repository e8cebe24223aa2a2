//! The text of an answer while it is generated, with stop strings cut off.

use std::{collections::VecDeque, sync::Arc};

use super::{StopStrings, TextProcessor, detokenizer::Detokenizer};
use crate::{Result, Token, TokenLogprobs};

/// The text of an answer while it is generated.
///
/// Tokens are held back while their text is undecided: an unfinished character, or the beginning of a stop string.
pub struct OutputText {
    detokenizer: Detokenizer,
    stops: Arc<StopStrings>,
    /// Which of the prefixes of stop strings the text ends with.
    prefix: u32,
    held: VecDeque<Token>,
    held_text: String,
    /// Tokens that are still to come before a stop string counts.
    unstoppable: usize,
}

/// The tokens that a new token releases.
#[derive(Debug, PartialEq)]
pub struct OutputDelta {
    /// The tokens whose text is decided now.
    pub ready: Vec<Token>,
    /// Whether a stop string came; then the answer is over.
    pub stopped: bool,
}

impl OutputText {
    /// An answer to a prompt.
    pub fn new(text: Arc<TextProcessor>, prompt: &[u32], stops: Arc<StopStrings>) -> Self {
        let (detokenizer, (held, held_text)) = (Detokenizer::new(text, prompt), Default::default());
        Self { detokenizer, stops, prefix: 0, held, held_text, unstoppable: 0 }
    }

    /// Lets stop strings count only if they end after that many tokens.
    pub fn min_tokens(self, min_tokens: usize) -> Self {
        Self { unstoppable: min_tokens, ..self }
    }

    /// Adds a generated token.
    pub fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Result<OutputDelta> {
        let text = self.detokenizer.push(id)?;
        let decided = text.is_some();
        let text = text.unwrap_or_default();
        let stop = self.find_stop(&text).filter(|_| self.unstoppable == 0);
        self.unstoppable = self.unstoppable.saturating_sub(1);
        self.held_text += &text;
        self.held.push_back(Token { id, text, logprobs });
        if !decided {
            return Ok(OutputDelta { ready: Vec::new(), stopped: false });
        }
        let undecided = self.stops.automaton().len_of(self.prefix);
        // The bytes of an unfinished character go to the last token, should no more come.
        let kept = usize::from(self.detokenizer.waits());
        match stop {
            Some(end) => Ok(OutputDelta { ready: self.cut(end), stopped: true }),
            None => Ok(OutputDelta { ready: self.release(self.held_text.len() - undecided, kept), stopped: false }),
        }
    }

    /// The only token of an answer.
    pub fn only(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Result<Token> {
        let mut text = self.detokenizer.push(id)?.unwrap_or_default();
        text += &self.detokenizer.finish()?;
        Ok(Token { id, text, logprobs })
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

    /// Where the first of the stop strings begins that end in `text`, which follows the held text.
    fn find_stop(&mut self, text: &str) -> Option<usize> {
        let automaton = self.stops.automaton();
        let mut first: Option<usize> = None;
        for (end, byte) in (self.held_text.len() + 1..).zip(text.bytes()) {
            self.prefix = automaton.step(self.prefix, byte);
            let begin = automaton.found(self.prefix).map(|len| end - len);
            first = first.into_iter().chain(begin).min();
        }
        first
    }

    /// Lets go of the tokens that end within the first `len` bytes, but for the last `kept` that are held.
    fn release(&mut self, len: usize, kept: usize) -> Vec<Token> {
        let (mut ready, mut end) = (Vec::new(), 0);
        while self.held.len() > kept
            && let Some(token) = self.held.front()
            && end + token.text.len() <= len
        {
            end += token.text.len();
            ready.extend(self.held.pop_front());
        }
        self.held_text.drain(..end);
        ready
    }

    /// The tokens before byte `end`, the last one cut there; the others are dropped.
    fn cut(&mut self, end: usize) -> Vec<Token> {
        let mut ready = self.release(end, 0);
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
