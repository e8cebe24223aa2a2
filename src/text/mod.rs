//! Text to token ids and back: tokenizers, chat templates, and the text of an answer while it is generated.

mod added_token_finder;
mod added_tokens;
pub mod budget;
mod byte_level;
mod chat_template;
mod class_defaults;
mod continued_chat;
mod control_names;
mod control_tokens;
mod detokenizer;
mod encode_pipeline;
mod expansion_limit;
mod gguf;
mod gguf_pre_tokenizer;
mod jinja;
mod lenient;
mod load;
mod normalizer;
mod output_text;
mod pattern;
mod plain_words;
mod pre_tokenizer;
mod rendered_prompt;
mod stop_strings;
mod subword;
mod template_files;
#[cfg(test)]
pub mod tests;
mod token_decoder;
mod tokenizer;
mod tokenizer_json;
mod vocab_merges;

use budget::TokenizeBudget;
pub use chat_template::{ChatTemplate, TemplateSource};
use encode_pipeline::EncodeMode;
pub use load::load;
pub use output_text::OutputText;
pub use stop_strings::StopStrings;
pub use tokenizer::Tokenizer;

use serde_json::{Map, Value};

use crate::{
    Error, Message, Result,
    config::{MAX_NESTING, nests_deeper},
};

/// The prompt of a request.
#[derive(Debug)]
pub enum Prompt {
    /// Raw text, in which special tokens are recognized.
    Text(String),
    /// A conversation, for the chat template.
    Chat(Vec<Message>),
    /// A conversation whose last message the model goes on with.
    ContinuedChat(Vec<Message>),
    /// Tokens, to which nothing is added.
    Ids(Vec<u32>),
}

impl Prompt {
    /// About how many bytes go into the template or the tokenizer.
    pub fn size(&self, vars: &Map<String, Value>) -> usize {
        let of_message = |message: &Message| message.content.len() + jinja::size(&message.fields);
        match self {
            Self::Text(text) => text.len(),
            Self::Chat(messages) | Self::ContinuedChat(messages) => {
                jinja::size(vars) + messages.iter().map(of_message).sum::<usize>()
            }
            // Nothing is done with them.
            Self::Ids(_) => 0,
        }
    }
}

/// A model's tokenizer and chat template.
pub struct TextProcessor {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    /// The ids that end an answer.
    pub end_ids: Vec<u32>,
    /// The id that ends a text in the model's training data.
    pub end_of_text: Option<u32>,
}

impl TextProcessor {
    /// The token ids of a prompt. `vars` are for the chat template.
    pub fn encode(&self, prompt: &Prompt, vars: &Map<String, Value>) -> Result<Vec<u32>> {
        let mut budget = TokenizeBudget::unlimited();
        let encoded = budget::at_once(self.encode_within(prompt, vars, &mut budget));
        encoded.unwrap_or_else(|| Err(Error::internal("a prompt was not tokenized at once")))
    }

    /// The token ids of a prompt, in turns with others and no more of them than the budget has.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work at once.
    pub async fn encode_within(
        &self,
        prompt: &Prompt,
        vars: &Map<String, Value>,
        budget: &mut TokenizeBudget,
    ) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Text(text) => self.tokenizer.encode_within(text, EncodeMode::Document, budget).await?,
            Prompt::Chat(messages) => self.encode_chat(messages, vars, budget).await?,
            Prompt::ContinuedChat(messages) => {
                let template = self.template.as_ref().ok_or(Error::NoChatTemplate)?;
                let rendered = continued_chat::render(template, chat_context(messages, vars)?)?;
                rendered.encode(&self.tokenizer, budget).await?
            }
            Prompt::Ids(ids) => ids.clone(),
        };
        if ids.is_empty() {
            return Err(Error::config("prompt", "it has no tokens"));
        }
        budget.check_whole(ids.len())?;
        Ok(ids)
    }

    async fn encode_chat(
        &self,
        messages: &[Message],
        vars: &Map<String, Value>,
        budget: &mut TokenizeBudget,
    ) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or(Error::NoChatTemplate)?;
        let rendered = rendered_prompt::RenderedPrompt::new(template, chat_context(messages, vars)?)?;
        rendered.encode(&self.tokenizer, budget).await
    }
}

/// The variables of a chat template.
fn chat_context(messages: &[Message], vars: &Map<String, Value>) -> Result<Map<String, Value>> {
    if messages.is_empty() {
        return Err(Error::config("messages", "there are none"));
    }
    let messages: Vec<Value> = messages.iter().map(|message| normalized(message.clone().into()).into()).collect();
    if messages.iter().any(|message| nests_deeper(message, MAX_NESTING)) {
        return Err(Error::config("messages", format!("a field is nested more than {MAX_NESTING} deep")));
    }
    let mut context = vars.clone();
    context.insert("messages".into(), messages.into());
    context.entry("add_generation_prompt").or_insert(true.into());
    Ok(context)
}

/// A message as transformers hands it to a template: without nulls, and with its reasoning under every name that
/// templates use.
fn normalized(mut message: Map<String, Value>) -> Map<String, Value> {
    message.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    let found = names.iter().find_map(|name| message.get(*name).cloned());
    let Some(reasoning) = found else { return message };
    message.insert("reasoning_content".into(), reasoning.clone());
    if !message.contains_key("thinking") {
        message.shift_insert(0, "thinking".into(), reasoning);
    }
    message
}
