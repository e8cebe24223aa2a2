//! Between text and token ids: tokenizer, chat template, and text as it is generated.

mod answer;
mod chat_template;
mod detokenizer;
pub mod gguf;
mod marks;
#[cfg(test)]
mod tests;
mod tokenizer;
mod words;

pub use answer::Answer;
pub use chat_template::ChatTemplate;
pub use tokenizer::Tokenizer;

use crate::{Error, Message, Result};

/// What a request wants to have continued.
#[derive(Debug)]
pub enum Prompt {
    /// Text of the program, in which special tokens are recognised.
    Text(String),
    /// A conversation, for the chat template.
    Chat(Vec<Message>),
}

/// A model's tokenizer and chat template.
pub struct TextProcessor {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// The ids that end an answer.
    pub end_ids: Vec<u32>,
}

impl TextProcessor {
    /// The token ids of a prompt.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Chat(messages) => self.encode_chat(messages)?,
        };
        if ids.is_empty() {
            return Err(Error::config("prompt", "it has no tokens"));
        }
        Ok(ids)
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or(Error::NoChatTemplate)?;
        if messages.is_empty() {
            return Err(Error::config("messages", "there are none"));
        }
        let marks = marks::Marks::new(&self.tokenizer, messages)?;
        let rendered = template.render(&marks.mark(messages))?;
        marks.encode(&self.tokenizer, &rendered)
    }
}
