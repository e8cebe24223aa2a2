//! Masks of tokens, computed beside the forward pass.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::handle::not_started;
use crate::{Error, Result};

/// A constraint on the tokens of an answer, a grammar say.
pub trait TokenMask: Send {
    /// The tokens allowed after the answer, then after the answer and each beginning of `draft`: `1 + draft.len()`
    /// sets, or fewer if the answer cannot go on with all of `draft`. Changes nothing.
    fn allowed(&mut self, draft: &[u32]) -> Result<Vec<TokenSet>>;

    /// Adds tokens to the answer, each of which was allowed.
    fn observe(&mut self, tokens: &[u32]) -> Result<()>;
}

/// A set of token ids, a bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet(Vec<u64>);

impl TokenSet {
    /// Whether the set has a token. Ids beyond the vocabulary it was made for are not in it.
    pub fn has(&self, id: u32) -> bool {
        self.0.get(id as usize / 64).is_some_and(|bits| bits >> (id % 64) & 1 == 1)
    }
}

impl FromIterator<u32> for TokenSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut bits = Vec::new();
        for id in ids {
            let at = id as usize / 64;
            bits.resize(bits.len().max(at + 1), 0);
            bits[at] |= 1 << (id % 64);
        }
        Self(bits)
    }
}

/// The thread that computes masks beside the forward pass. It starts with the first mask.
#[derive(Default)]
pub struct MaskThread(Option<ThreadPool>);

impl MaskThread {
    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let pool = match self.0.take() {
            Some(pool) => pool,
            None => {
                let pool = ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "token masks".into());
                pool.build().map_err(not_started)?
            }
        };
        self.0.insert(pool).spawn(work);
        Ok(())
    }
}

/// The mask of a sequence: at rest, or on the mask thread while a forward pass computes the sequence's logits.
pub enum MaskState {
    Ready(Box<dyn TokenMask>),
    Computing(mpsc::Receiver<Computed>),
    /// The sequence is about to end.
    Failed(Error),
}

/// A mask on its way back from the mask thread.
type Computed = (Box<dyn TokenMask>, Result<Vec<TokenSet>>);

impl MaskState {
    /// Starts to compute the tokens allowed after the answer and after each beginning of `draft`.
    pub fn start(&mut self, draft: &[u32], thread: &mut MaskThread) {
        let failed = Self::Failed(Error::internal("a token mask was lost"));
        let Self::Ready(mut mask) = std::mem::replace(self, failed) else { return };
        let (sender, computed) = mpsc::sync_channel(1);
        let draft = draft.to_vec();
        let started = thread.spawn(move || {
            let allowed = catch_unwind(AssertUnwindSafe(|| mask.allowed(&draft)));
            let allowed = allowed.unwrap_or_else(|panic| Err(Error::panicked("a token mask", panic.as_ref())));
            // The sequence may have ended meanwhile.
            let _ = sender.send((mask, allowed));
        });
        *self = started.map_or_else(Self::Failed, |()| Self::Computing(computed));
    }

    /// Waits for the sets that were started.
    pub fn join(&mut self) -> Result<Vec<TokenSet>> {
        let failed = Self::Failed(Error::internal("a token mask was lost"));
        match std::mem::replace(self, failed) {
            Self::Computing(computed) => {
                let lost = |_| Error::internal("the thread of token masks has ended");
                let (mask, allowed) = computed.recv().map_err(lost)?;
                *self = Self::Ready(mask);
                allowed
            }
            Self::Failed(error) => Err(error),
            Self::Ready(_) => Err(Error::internal("a token mask was not computed")),
        }
    }

    /// Adds tokens to the answer.
    pub fn observe(&mut self, tokens: &[u32]) -> Result<()> {
        match self {
            Self::Ready(mask) => mask.observe(tokens),
            _ => Err(Error::internal("a token mask is not at rest")),
        }
    }
}
