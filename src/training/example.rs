use crate::Message;

/// What a model learns from.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TrainExample {
    /// A text, all of which is learned but its first token.
    Text(String),
    /// A conversation, written down by the model's chat template: what the assistant says is learned, but for a first
    /// message, which answers nothing, and the token that ends each answer, even if the template leaves it to the next
    /// turn. Each answer is learned after what the model is given before it; where the template writes earlier turns in
    /// another way once there are later ones, the example becomes several sequences.
    Chat(Vec<Message>),
    /// Tokens, all of which are learned but the first.
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
