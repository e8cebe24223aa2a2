//! The budget of tokenizing one prompt: how many tokens, and how long before other prompts get a turn.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use futures::FutureExt;

use crate::{Error, Result};

/// How long one prompt is tokenized before others have their turn.
const TURN: Duration = Duration::from_millis(1);
/// Calls between looks at the clock.
const CALLS: u32 = 32;

/// The budget that is left for a prompt.
pub struct TokenizeBudget {
    /// Tokens the prompt may have, and the context length.
    room: Option<(usize, usize)>,
    /// Tokens so far.
    tokens: usize,
    calls: u32,
    turn: Option<Instant>,
}

impl TokenizeBudget {
    /// No limits, and no yielding.
    pub fn unlimited() -> Self {
        Self { room: None, tokens: 0, calls: 0, turn: None }
    }

    /// A budget that yields to other prompts, for at most `most` tokens in a context of `limit`.
    pub fn cooperative(most: usize, limit: usize) -> Self {
        Self { room: Some((most, limit)), tokens: 0, calls: 0, turn: Some(Instant::now()) }
    }

    /// Whether that many more bytes may become too many tokens.
    pub fn may_exceed(&self, bytes: usize) -> bool {
        self.room.is_some_and(|(most, _)| self.tokens.saturating_add(bytes) > most)
    }

    /// Yields to other prompts once this one has had a millisecond.
    pub async fn yield_if_due(&mut self) {
        let Some(begun) = self.turn else { return };
        self.calls += 1;
        if !self.calls.is_multiple_of(CALLS) || begun.elapsed() < TURN {
            return;
        }
        let mut gone_round = false;
        poll_fn(|context| {
            if std::mem::replace(&mut gone_round, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.turn = Some(Instant::now());
    }

    /// Forgets the tokens so far: the text is encoded anew.
    pub fn restart(&mut self) {
        self.tokens = 0;
    }

    /// Counts tokens. A prompt far longer than it may be is not tokenized to its end.
    pub fn spend(&mut self, tokens: usize) -> Result<()> {
        self.tokens += tokens;
        match self.room {
            Some((most, limit)) if self.tokens > most.saturating_mul(2).saturating_add(1024) => {
                Err(Error::PromptTooLong { tokens: self.tokens, limit, prompt: None })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a prompt that will have at least that many more tokens.
    pub fn check(&self, least: usize) -> Result<()> {
        let tokens = self.tokens.saturating_add(least);
        match self.room {
            Some((most, limit)) if tokens > most => Err(Error::PromptTooLong { tokens, limit, prompt: None }),
            _ => Ok(()),
        }
    }

    /// Refuses a prompt that is longer than it may be.
    pub fn check_whole(&self, tokens: usize) -> Result<()> {
        match self.room {
            Some((most, limit)) if tokens > most => Err(Error::PromptTooLong { tokens, limit, prompt: None }),
            _ => Ok(()),
        }
    }
}

/// The result of work whose budget is unlimited.
pub fn at_once<T>(work: impl Future<Output = T>) -> Option<T> {
    work.now_or_never()
}
