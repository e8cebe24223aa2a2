//! The end of a stream.

use serde::{Deserialize, Serialize};

use crate::Error;

/// Why a stream ended. Serialized as `"stop"`, `"length"`, `"cancelled"` or `"error"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// An end-of-text token, a stop token or a stop string.
    Stop,
    /// [`max_tokens`](crate::GenerateConfig::max_tokens), or a full context.
    Length,
    /// Cancelled by a [`CancellationToken`](tokio_util::sync::CancellationToken).
    Cancelled,
    /// An error: [`TokenStream::err`](crate::TokenStream::err).
    Error,
}

/// How a request ended: the reason, and the error if there is one.
#[derive(Debug, Clone)]
pub struct End {
    pub reason: FinishReason,
    pub error: Option<Error>,
}

impl End {
    pub fn stop() -> Self {
        Self { reason: FinishReason::Stop, error: None }
    }

    pub fn length() -> Self {
        Self { reason: FinishReason::Length, error: None }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::Cancelled => FinishReason::Cancelled,
            _ => FinishReason::Error,
        };
        Self { reason, error: Some(error) }
    }
}
