//! Training examples.

use crate::Message;

/// A training example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TrainExample {
    /// A text. Targets are all tokens but the first.
    Text(String),
    /// A conversation, rendered by the model's chat template. Targets are the tokens of each answer of the assistant,
    /// and an end token even if the template writes none. A first message of the assistant is no answer. Each
    /// answer is trained after the prompt that the model would have seen; where the template renders earlier turns
    /// differently once later ones follow, the example becomes several sequences.
    Chat(Vec<Message>),
    /// Token ids. Targets are all of them but the first.
    Tokens(Vec<u32>),
}

impl TrainExample {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A conversation.
    pub fn chat(messages: impl Into<Vec<Message>>) -> Self {
        Self::Chat(messages.into())
    }
}
