//! Tokens of a stream.

use serde::{Deserialize, Serialize};

/// A generated token. `logprobs` is serialized only if present.
///
/// ```
/// use tokenflow::Token;
/// let json = serde_json::to_string(&Token::new(7, "sea")).unwrap();
/// assert_eq!(json, r#"{"id":7,"text":"sea"}"#);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Token {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// The text that this token adds. Empty for special tokens, and for a token that ends inside a UTF-8 character,
    /// whose bytes come with the next one.
    ///
    /// The concatenated texts are the decoding of prompt and answer without the decoding of the prompt, with a leading
    /// space if there is one. Exception: after bytes that are not UTF-8, a decoding of all ids by a tokenizer with byte
    /// tokens also replaces characters before them, which the stream has already delivered.
    pub text: String,
    /// Log-probabilities, if [`GenerateConfig::logprobs`](crate::GenerateConfig::logprobs) asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<TokenLogprobs>,
}

impl Token {
    /// A token without log-probabilities.
    pub fn new(id: u32, text: impl Into<String>) -> Self {
        Self { id, text: text.into(), logprobs: None }
    }
}

/// Log-probabilities of a token: natural logarithms, under the model's own distribution, before temperature, penalties
/// and truncation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// The log-probability of the token itself.
    pub logprob: f32,
    /// The most likely ids with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Log-probabilities, for implementers of backends.
    pub fn new(logprob: f32, top: Vec<(u32, f32)>) -> Self {
        Self { logprob, top }
    }
}
