//! The error type of the crate.

use std::{fmt, path::PathBuf, sync::Arc};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause behind an [`Error`], shared so that errors can be cloned to every stream they end.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// All errors of the crate, a variant for each case that callers would handle differently.
///
/// `Display` prints one level only; [`source`](std::error::Error::source) has the cause.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model was closed or dropped.
    #[error("the model is closed")]
    Closed,
    /// The request's cancellation token was cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// The queue is full; try again later.
    #[error("the queue is full: {limit} requests are waiting")]
    Overloaded {
        /// The number of requests that may wait: [`LoadConfig::queue_limit`](crate::LoadConfig::queue_limit).
        limit: usize,
    },
    /// The request's deadline passed.
    #[error("the request's deadline passed")]
    DeadlineExceeded,
    /// The prompt does not fit into the context.
    #[error("{} has {tokens} tokens and the context holds {limit}, the answer included", the_prompt(*prompt))]
    PromptTooLong {
        /// Tokens of the prompt. A lower bound for a prompt that is far too long, which is not tokenized to its end.
        tokens: usize,
        /// Tokens a sequence may hold.
        limit: usize,
        /// The index of the prompt in [`classify`](crate::TextModel::classify) or [`score`](crate::TextModel::score);
        /// `None` in other calls.
        prompt: Option<usize>,
    },
    /// A value of a config or an argument that cannot be honored.
    #[error("invalid {field}: {reason}")]
    InvalidConfig {
        /// The field or argument.
        field: &'static str,
        /// The value and the reason why it is refused.
        reason: String,
    },
    /// The model's architecture, or a variant its config asks for, is not implemented.
    #[error("architecture {architecture:?} is not supported; supported are: {}", supported.join(", "))]
    UnsupportedArchitecture {
        /// The architecture's name in the model's files.
        architecture: String,
        /// The names of the supported architectures.
        supported: Vec<String>,
    },
    /// A model file is missing, damaged or inconsistent.
    #[error("{}: {reason}", path.display())]
    InvalidModel {
        /// The file or directory at fault.
        path: PathBuf,
        /// The field and value at fault.
        reason: String,
        /// The error of the reader.
        #[source]
        source: Option<Cause>,
    },
    /// The model has no chat template for [`chat`](crate::TextModel::chat).
    /// [`LoadConfig::chat_template`](crate::LoadConfig::chat_template) can set one.
    #[error("the model has no chat template")]
    NoChatTemplate,
    /// The chat template refused the conversation or failed.
    #[error("the chat template failed: {reason}")]
    ChatTemplate {
        /// The message of the template.
        reason: String,
    },
    /// The model or its backend does not have this capability.
    #[error("this model does not support {capability}")]
    Unsupported {
        /// The missing capability.
        capability: Capability,
    },
    /// No backend of this name is registered.
    #[error("no backend is called {name:?}; registered are: {}", known.join(", "))]
    BackendNotFound {
        /// The name asked for.
        name: String,
        /// The registered names.
        known: Vec<String>,
    },
    /// The backend is known but cannot run on this machine.
    #[error("backend {name:?} is not available: {reason}")]
    BackendUnavailable {
        /// The backend's name.
        name: String,
        /// Why it cannot run.
        reason: String,
    },
    /// No registered backend can run on this machine.
    #[error("no backend is available on this machine")]
    NoBackend,
    /// The model cannot be trained.
    #[error("this model cannot be trained: {reason}")]
    NotTrainable {
        /// Why not.
        reason: String,
    },
    /// Another training of the model is in progress. Reading its [`TrainStream`](crate::TrainStream) to the end waits
    /// for it, [`stop`](crate::TrainStream::stop) ends it.
    #[error("another training of this model is in progress")]
    TrainingInProgress,
    /// A server failed, or the network.
    #[error("{endpoint}: {reason}")]
    Remote {
        /// The address or service.
        endpoint: String,
        /// The server's answer, or the reason why there is none.
        reason: String,
    },
    /// A bug in this crate or in a library, or a lack of memory.
    #[error("internal error: {reason}")]
    Internal {
        /// The failed operation.
        reason: String,
        /// The error of the library.
        #[source]
        source: Option<Cause>,
    },
}

/// A function that not all models have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// [`encode`](crate::TextModel::encode), [`decode`](crate::TextModel::decode) and
    /// [`generate_ids`](crate::TextModel::generate_ids): token ids in place of text.
    Tokenize,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tokenize => "tokenize",
        })
    }
}

/// The name of a prompt in messages.
fn the_prompt(index: Option<usize>) -> String {
    index.map_or_else(|| "the prompt".into(), |index| format!("prompt {index}"))
}

impl Error {
    /// Adds the index of the prompt, counted from 0, for implementers of backends: in the field of
    /// [`PromptTooLong`](Self::PromptTooLong), and at the beginning of the reasons of
    /// [`InvalidConfig`](Self::InvalidConfig) and [`Internal`](Self::Internal). Other errors concern the whole call and
    /// stay as they are.
    #[must_use]
    pub fn at_prompt(self, index: usize) -> Self {
        let at = |reason| format!("{}: {reason}", the_prompt(Some(index)));
        match self {
            Self::PromptTooLong { tokens, limit, .. } => Self::PromptTooLong { tokens, limit, prompt: Some(index) },
            Self::InvalidConfig { field, reason } => Self::InvalidConfig { field, reason: at(reason) },
            Self::Internal { reason, source } => Self::Internal { reason: at(reason), source },
            other => other,
        }
    }

    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidConfig { field, reason: reason.into() }
    }

    pub(crate) fn model(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::InvalidModel { path: path.into(), reason: reason.into(), source: None }
    }

    pub(crate) fn model_because(
        path: impl Into<PathBuf>,
        reason: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::InvalidModel { path: path.into(), reason: reason.into(), source: Some(source.into().into()) }
    }

    /// The error of a caught panic.
    pub(crate) fn panicked(who: &str, panic: &(dyn std::any::Any + Send)) -> Self {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Self::internal(format!("{who} panicked: {message}"))
    }

    pub(crate) fn internal(reason: impl Into<String>) -> Self {
        Self::Internal { reason: reason.into(), source: None }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Internal { reason: "a tensor operation failed".into(), source: Some(Arc::new(error)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_cross_threads_and_can_be_cloned() {
        fn check<T: std::error::Error + Clone + Send + Sync + 'static>() {}
        check::<Error>();
    }

    #[test]
    fn errors_say_at_which_prompt_and_stay_what_they_are() {
        let long = |prompt| Error::PromptTooLong { tokens: 9, limit: 8, prompt };
        assert_eq!(long(None).to_string(), "the prompt has 9 tokens and the context holds 8, the answer included");
        assert!(matches!(long(None).at_prompt(3), Error::PromptTooLong { tokens: 9, limit: 8, prompt: Some(3) }));
        assert!(long(Some(3)).to_string().starts_with("prompt 3 has 9 tokens"));
        let said = |error: Error| error.at_prompt(2).to_string();
        assert_eq!(said(Error::config("prompt", "it has no tokens")), "invalid prompt: prompt 2: it has no tokens");
        assert_eq!(said(Error::internal("a tensor is lost")), "internal error: prompt 2: a tensor is lost");
        assert!(matches!(Error::Cancelled.at_prompt(2), Error::Cancelled));
    }

    #[test]
    fn display_prints_its_own_level_only() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::model_because("a/config.json", "cannot be read", cause);
        assert_eq!(error.to_string(), "a/config.json: cannot be read");
        let source = std::error::Error::source(&error).expect("has a source");
        assert_eq!(source.to_string(), "disk on fire");
    }
}
