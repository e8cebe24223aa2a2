use std::path::Path;

use chrono::NaiveDateTime;
use serde_json::{Map, Value};

use super::jinja::{Failure, Rendered, Template};
use crate::{Error, Result};

/// A model's way to write a conversation down, in Jinja as transformers runs it.
pub struct ChatTemplate {
    default: Template,
    tool_use: Option<Template>,
    bos_token: String,
    eos_token: String,
    /// The strings in its code, which it may look for in texts.
    pub literals: Vec<String>,
    now: Option<NaiveDateTime>,
}

/// A template, and perhaps another one for conversations with tools.
pub struct TemplateSource {
    pub default: String,
    pub tool_use: Option<String>,
}

impl From<String> for TemplateSource {
    fn from(default: String) -> Self {
        Self { default, tool_use: None }
    }
}

const NAME: &str = "chat_template";
const TOOL_USE: &str = "chat_template tool_use";
/// Bytes a template may be long. Those of models have less than half of it.
const MAX_SOURCE_BYTES: usize = 128 << 10;

impl ChatTemplate {
    /// Parses a template. `path` is where it came from, `bos_token` and `eos_token` are the texts
    /// it may use.
    pub fn new(path: &Path, source: impl Into<TemplateSource>, bos_token: String, eos_token: String) -> Result<Self> {
        let TemplateSource { default, tool_use } = source.into();
        let parse = |name: &str, source: String| {
            if source.len() > MAX_SOURCE_BYTES {
                let reason = format!("{name} has {} bytes, more than {MAX_SOURCE_BYTES}", source.len());
                return Err(Error::model(path, reason));
            }
            let invalid = |failure: Failure| format!("{name} is not a valid template: {}", failure.reason);
            Template::parse(&source).map_err(|failure| Error::model(path, invalid(failure)))
        };
        let default = parse(NAME, default)?;
        let tool_use = tool_use.map(|source| parse(TOOL_USE, source)).transpose()?;
        let mut literals = default.literals().to_vec();
        literals.extend(tool_use.iter().flat_map(Template::literals).cloned());
        literals.sort();
        literals.dedup();
        Ok(Self { default, tool_use, bos_token, eos_token, literals, now: None })
    }

    /// Writes down what `context` holds: `messages` and whatever else the template reads.
    pub fn render(&self, context: Map<String, Value>) -> Result<String> {
        self.render_with_origins(context).map(|rendered| rendered.text)
    }

    /// Writes down what `context` holds, and says which bytes are from there.
    pub fn render_with_origins(&self, mut context: Map<String, Value>) -> Result<Rendered> {
        let with_tools = context.get("tools").is_some_and(|tools| !tools.is_null());
        let (name, template) = match &self.tool_use {
            Some(template) if with_tools => (TOOL_USE, template),
            _ => (NAME, &self.default),
        };
        for name in ["tools", "documents"] {
            context.entry(name).or_insert_with(|| Value::Null);
        }
        let words = [("bos_token", &self.bos_token[..]), ("eos_token", &self.eos_token[..])];
        template.render(&context, &words, self.now).map_err(|failure| Error::ChatTemplate {
            reason: if failure.raised { failure.reason } else { format!("{name}, {}", failure.reason) },
        })
    }

    /// The same template, for which it is always `now`.
    #[cfg(test)]
    pub fn at(mut self, now: NaiveDateTime) -> Self {
        self.now = Some(now);
        self
    }
}
