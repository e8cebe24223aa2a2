//! Prompts that end within the last message, for the model to continue (`continue_final_message` of transformers).

use serde_json::{Map, Value};

use super::{ChatTemplate, rendered_prompt::RenderedPrompt};
use crate::{Error, Result};

/// Marks the end of the last message in the prompt. A template may trim the space.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

fn refused(reason: &str) -> Error {
    Error::config("continue_final_message", reason)
}

/// The prompt of a conversation up to the end of its last message's content.
pub fn render(template: &ChatTemplate, mut context: Map<String, Value>) -> Result<RenderedPrompt> {
    context.insert("add_generation_prompt".into(), false.into());
    if !template.reads_content(&context) {
        return Err(refused("the chat template does not read the content of messages"));
    }
    let last = context.get_mut("messages").and_then(|messages| messages.as_array_mut()?.last_mut());
    let content = last.and_then(|message| message.get_mut("content"));
    let text = text_of(content.ok_or_else(|| refused("the last message has no content"))?)?;
    let content = text.trim().to_owned();
    text.push_str(TAG);
    let mut rendered = RenderedPrompt::new(template, context)?;
    match rendered.text.rfind(TAG.trim_end()) {
        Some(end) if rendered.text.contains(&content) => {
            let keeps_space = rendered.text[end..].starts_with(TAG);
            let before = &rendered.text[..end];
            let end = if keeps_space { end } else { before.trim_end().len() };
            rendered.truncate(end);
            Ok(rendered)
        }
        _ => Err(refused("the chat template does not write all of the last message's content")),
    }
}

/// The text of a content: of its last part that has one, if it has parts.
fn text_of(content: &mut Value) -> Result<&mut String> {
    let text = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => Some(content),
    };
    match text {
        Some(Value::String(text)) => Ok(text),
        _ => Err(refused("the last message has no text")),
    }
}
