//! Chat templates: a conversation to a prompt.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use chrono::NaiveDateTime;
use serde_json::{Map, Value};

use super::jinja::{JinjaError, Template, Written};
use crate::{Error, Result};

/// A model's chat template, in Jinja as transformers runs it.
pub struct ChatTemplate {
    /// The templates, or why they cannot be used.
    templates: Result<Templates>,
    bos_token: String,
    eos_token: String,
    now: Option<NaiveDateTime>,
}

struct Templates {
    default: Template,
    tool_use: Option<Template>,
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
/// Bytes a template may have; real ones have less than half of it.
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
            let invalid = |failure: JinjaError| format!("{name} is not a valid template: {}", failure.reason);
            guarded(|| Template::parse(&source)).map_err(|failure| Error::model(path, invalid(failure)))
        };
        let default = parse(NAME, default)?;
        let tool_use = tool_use.map(|source| parse(TOOL_USE, source)).transpose()?;
        Ok(Self { templates: Ok(Templates { default, tool_use }), bos_token, eos_token, now: None })
    }

    /// A template that cannot be used, for this reason.
    pub fn unusable(error: Error) -> Self {
        let (bos_token, eos_token) = Default::default();
        Self { templates: Err(error), bos_token, eos_token, now: None }
    }

    /// The template for `context`, which depends on whether there are tools, and its name.
    fn template(&self, context: &Map<String, Value>) -> Result<(&'static str, &Template)> {
        let Templates { default, tool_use } = self.templates.as_ref().map_err(Clone::clone)?;
        let with_tools = context.get("tools").is_some_and(|tools| !tools.is_null());
        Ok(match tool_use {
            Some(template) if with_tools => (TOOL_USE, template),
            _ => (NAME, default),
        })
    }

    /// Whether the template for `context` may read the content of messages.
    pub fn reads_content(&self, context: &Map<String, Value>) -> bool {
        self.template(context).map_or(true, |(_, template)| template.source().contains("content"))
    }

    /// Renders `context`: `messages` and other variables of the template.
    #[cfg(test)]
    pub fn render(&self, context: Map<String, Value>) -> Result<String> {
        self.render_with_origins(context).map(|rendered| rendered.text)
    }

    /// Renders `context`, and tells which bytes of the output come from it.
    pub fn render_with_origins(&self, mut context: Map<String, Value>) -> Result<Written> {
        let (name, template) = self.template(&context)?;
        for name in ["tools", "documents"] {
            context.entry(name).or_insert_with(|| Value::Null);
        }
        let words = [("bos_token", &self.bos_token[..]), ("eos_token", &self.eos_token[..])];
        let rendered = guarded(|| template.render(&context, &words, self.now));
        rendered.map_err(|failure| Error::ChatTemplate {
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

/// Makes an error of a panic, of which there should be none.
fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, JinjaError>) -> std::result::Result<T, JinjaError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(JinjaError::new("it ended in a panic")))
}
