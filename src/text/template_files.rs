//! Where a checkpoint keeps its chat template.

use std::path::{Path, PathBuf};

use super::{ChatTemplate, TemplateSource, lenient::ignore_invalid};
use crate::{
    Error, Result, files,
    weights::{Config, gguf::GgufMetadata},
};

/// A chat template as the files have it, or why it cannot be read.
pub struct FoundTemplate {
    path: PathBuf,
    pub source: Result<TemplateSource>,
}

impl FoundTemplate {
    pub fn new(path: &Path, source: Result<TemplateSource>) -> Self {
        Self { path: path.to_owned(), source }
    }

    pub fn of_gguf(path: &Path, metadata: &GgufMetadata) -> Option<Self> {
        let default = ignore_invalid(metadata.opt_str("tokenizer.chat_template"))?.to_owned();
        let tool_use = ignore_invalid(metadata.opt_str("tokenizer.chat_template.tool_use")).map(str::to_owned);
        Some(Self::new(path, Ok(TemplateSource { default, tool_use })))
    }

    /// Looks for a file of its own first, then in the tokenizer's configuration.
    ///
    /// # Errors
    /// A template file that is too large or no regular file.
    pub fn of_directory(dir: &Path, config: Option<&Config>) -> Result<Option<Self>> {
        let path = dir.join("chat_template.jinja");
        if files::exists(&path) {
            let default = template_file(&path)?;
            let tool_use = dir.join("additional_chat_templates/tool_use.jinja");
            let tool_use = if files::exists(&tool_use) { Some(template_file(&tool_use)?) } else { None };
            let source = default.and_then(|default| Ok(TemplateSource { default, tool_use: tool_use.transpose()? }));
            return Ok(Some(Self::new(&path, source)));
        }
        let path = dir.join("chat_template.json");
        Ok(match Config::read_if_there(&path) {
            Ok(None) => config.and_then(|config| named_template(&dir.join("tokenizer_config.json"), config)),
            Ok(Some(config)) => named_template(&path, &config),
            Err(error) => {
                files::open(&path)?;
                Some(Self::new(&path, Err(error)))
            }
        })
    }

    pub fn parse(self, bos_token: String, eos_token: String) -> Result<ChatTemplate> {
        ChatTemplate::new(&self.path, self.source?, bos_token, eos_token)
    }
}

/// The text of a file, or why it is not UTF-8.
fn template_file(path: &Path) -> Result<Result<String>> {
    let bytes = files::read_limited(path, files::MAX_TEMPLATE)?;
    Ok(String::from_utf8(bytes).map_err(|error| Error::model_because(path, "is not UTF-8", error)))
}

/// The template of a configuration; of several, the ones named "default" and "tool_use".
fn named_template(path: &Path, config: &Config) -> Option<FoundTemplate> {
    let value = config.get("chat_template")?;
    if let Some(source) = value.as_str() {
        return Some(FoundTemplate::new(path, Ok(source.to_owned().into())));
    }
    let entries = value.as_array().map_or(&[][..], Vec::as_slice);
    let named = |name: &str| {
        let entry = entries.iter().find(|entry| entry.get("name").is_some_and(|found| found == name));
        entry.and_then(|entry| entry.get("template")?.as_str()).map(str::to_owned)
    };
    let default = named("default").ok_or_else(|| config.bad("chat_template", "has no default template"));
    let source = default.map(|default| TemplateSource { default, tool_use: named("tool_use") });
    Some(FoundTemplate::new(path, source))
}
