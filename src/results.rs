//! The results of calls with many prompts.

use serde::{Serialize, Serializer};

use crate::{Error, Result, Token};

/// The result of one prompt of [`TextModel::classify`](crate::TextModel::classify). In JSON a logit of negative
/// infinity is `null`.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ClassifyResult {
    /// The token predicted after the prompt. Unlike the tokens of a stream, it may be an end-of-text token.
    pub token: Token,
    /// The logits that `token` was chosen from, `[vocab_size]`, if
    /// [`return_logits`](crate::GenerateConfig::return_logits) asked for them.
    pub logits: Option<Vec<f32>>,
}

impl ClassifyResult {
    /// A result, for implementers of backends.
    pub fn new(token: Token, logits: Option<Vec<f32>>) -> Self {
        Self { token, logits }
    }
}

/// The result of one prompt of [`TextModel::batch_generate`](crate::TextModel::batch_generate). The error serializes as
/// its message.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct BatchResult {
    /// The tokens generated.
    pub tokens: Vec<Token>,
    /// Why the answer is cut short, if it is.
    #[serde(serialize_with = "message")]
    pub err: Option<Error>,
}

fn message<S: Serializer>(error: &Option<Error>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_ref().map(ToString::to_string).serialize(serializer)
}

impl BatchResult {
    /// A result, for implementers of backends.
    pub fn new(tokens: Vec<Token>, err: Option<Error>) -> Self {
        Self { tokens, err }
    }

    /// The text of the answer.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }
}
