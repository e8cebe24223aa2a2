//! The seam between requests and the backends that compute them.

use tokio::sync::oneshot;

use super::RequestContext;
use crate::{GenerateConfig, Result, text::Prompt};

/// The part of a backend behind the [`Frontend`](super::Frontend): computes requests, or has a server compute them.
pub trait Executor: Send + Sync {
    /// An adapter that was looked up; `()` if the executor has none.
    type Adapter: Clone + Send + Sync;

    /// The adapter that `config` names, looked up once a call, before its requests wait for admission.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if there is no such adapter.
    fn adapter(&self, config: &GenerateConfig) -> Result<Self::Adapter>;

    /// Takes an admitted request over, without blocking. The executor ends it with [`RequestContext::end`] or
    /// [`RequestContext::fail`], whatever happens.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), or the error that has ended the executor; the request is dropped.
    fn submit(&self, request: Request<Self::Adapter>) -> Result<()>;
}

/// An admitted request.
pub struct Request<A> {
    pub prompt: Prompt,
    pub config: GenerateConfig,
    pub task: Task,
    pub adapter: A,
    pub context: RequestContext,
}

/// The kind of answer that a request asks for.
#[derive(Debug)]
pub enum Task {
    Generate,
    /// One token, whichever it is.
    Classify {
        /// Receives the logits that the token was chosen from, `[vocab_size]`.
        logits: Option<oneshot::Sender<Vec<f32>>>,
    },
    /// The tokens of the prompt with their log-probabilities.
    Score,
}
