//! Tokenizer and chat template of a checkpoint.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    ChatTemplate, TextProcessor, Tokenizer,
    added_tokens::{self, AddedTokens},
    class_defaults, gguf,
    lenient::ignore_invalid,
    template_files::FoundTemplate,
    vocab_merges,
};
use crate::{
    Error, Result, files,
    weights::{Checkpoint, Config, TensorStore, no_tokenizer},
};

/// Loads the tokenizer and the chat template of a checkpoint.
///
/// `chat_template` replaces the template of the files. The model has embeddings for `vocab_size` ids.
pub fn load(checkpoint: &Checkpoint, chat_template: Option<&str>, vocab_size: usize) -> Result<TextProcessor> {
    let mut found = match &checkpoint.store {
        TensorStore::Gguf(file) => {
            let tokenizer = gguf::tokenizer(&file.path, &file.metadata)?;
            let token = |key| {
                let id = ignore_invalid(file.metadata.opt_u32(key));
                id.and_then(|id| tokenizer.token_of(id)).unwrap_or_default()
            };
            TextParts {
                bos_token: token("tokenizer.ggml.bos_token_id"),
                eos_token: token("tokenizer.ggml.eos_token_id"),
                end_ids: gguf::end_ids(&file.metadata, &tokenizer),
                template: FoundTemplate::of_gguf(&file.path, &file.metadata),
                tokenizer,
            }
        }
        TensorStore::Safetensors(_) => directory_text(checkpoint, vocab_size)?,
    };
    let replaces = chat_template.map(|source| FoundTemplate::new(&checkpoint.path, Ok(source.to_owned().into())));
    let is_own = replaces.is_none();
    let template = replaces.or(found.template);
    let end_of_text = found.tokenizer.id_of(&found.eos_token);
    let named = [end_of_text, found.tokenizer.id_of(&found.bos_token)];
    let ids: Vec<u32> = found.end_ids.iter().copied().chain(named.into_iter().flatten()).collect();
    let sources = template.iter().filter_map(|template| template.source.as_ref().ok());
    let sources = sources.flat_map(|source| [Some(&source.default), source.tool_use.as_ref()]);
    found.tokenizer.control_also(&ids, sources.flatten().map(String::as_str));
    let template = match template.map(|template| template.parse(found.bos_token, found.eos_token)).transpose() {
        Ok(template) => template,
        // The model can do all else.
        Err(error) if is_own => {
            tracing::warn!(%error, "the chat template cannot be used");
            Some(ChatTemplate::unusable(error))
        }
        Err(Error::InvalidModel { reason, .. }) => return Err(Error::config("chat_template", reason)),
        Err(error) => return Err(error),
    };
    Ok(TextProcessor { tokenizer: found.tokenizer, template, end_ids: found.end_ids, end_of_text })
}

/// The parts of a [`TextProcessor`] as the files have them.
struct TextParts {
    tokenizer: Tokenizer,
    template: Option<FoundTemplate>,
    bos_token: String,
    eos_token: String,
    end_ids: Vec<u32>,
}

fn directory_text(checkpoint: &Checkpoint, vocab_size: usize) -> Result<TextParts> {
    let dir = &checkpoint.path;
    let mut config = added_tokens::config(dir)?;
    let path = dir.join("tokenizer.json");
    let tokenizer = if files::exists(&path) {
        let known = config.clone().unwrap_or_else(|| Config::new(dir.join("tokenizer_config.json"), Map::new()));
        Tokenizer::read(&path, AddedTokens::read_leniently(dir, &known)?.below(vocab_size))?
    } else if vocab_merges::is_there(dir) {
        let known = vocab_merges::config(dir, config);
        let tokenizer = vocab_merges::tokenizer(dir, &known)?;
        config = Some(known);
        tokenizer
    } else {
        return Err(no_tokenizer(dir));
    };
    let (bos_token, eos_token) =
        (named(config.as_ref(), "bos_token", &tokenizer)?, named(config.as_ref(), "eos_token", &tokenizer)?);
    let generation = generation_config(dir)?;
    let mut end_ids: Vec<u32> = [Some(&checkpoint.config), generation.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|config| known_ids(config, "eos_token_id", vocab_size))
        .collect();
    let ends = ["eot_token", "eom_token"].map(|key| ignore_invalid(special_token(config.as_ref(), key)));
    end_ids.extend(ends.iter().chain([&eos_token]).filter_map(|token| tokenizer.id_of(token)));
    end_ids.sort_unstable();
    end_ids.dedup();
    Ok(TextParts {
        template: FoundTemplate::of_directory(dir, config.as_ref())?,
        bos_token,
        eos_token,
        end_ids,
        tokenizer,
    })
}

/// Reads `generation_config.json`. As in transformers, a file that is no JSON object is ignored.
///
/// # Errors
/// A file that is too large or no regular file.
fn generation_config(dir: &Path) -> Result<Option<Config>> {
    let path = dir.join("generation_config.json");
    if files::exists(&path) {
        files::read_limited(&path, files::MAX_JSON)?;
    }
    Ok(ignore_invalid(Config::read_if_there(&path)))
}

/// An id or a list of ids; ids that the model does not have are ignored.
fn known_ids(config: &Config, key: &str, vocab_size: usize) -> Vec<u32> {
    let values = match config.get(key) {
        None => &[][..],
        Some(Value::Array(values)) => values,
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value: &Value| value.as_u64().filter(|id| *id < vocab_size as u64).map(|id| id as u32);
    let ids: Vec<u32> = values.iter().filter_map(id).collect();
    if ids.len() < values.len() {
        let why = format!("not ids below {vocab_size}, all of them: what is none is ignored");
        tracing::warn!("{}", config.bad(key, &why));
    }
    ids
}

/// The text of a special token that the configuration names, or else of the class's default if the vocabulary has it.
fn named(config: Option<&Config>, key: &str, tokenizer: &Tokenizer) -> Result<String> {
    let token = special_token(config, key)?;
    if !token.is_empty() {
        return Ok(token);
    }
    let mut defaults = config.into_iter().flat_map(class_defaults::tokens);
    let default = defaults.find(|(found, text)| *found == key && tokenizer.id_of(text).is_some());
    Ok(default.map(|(_, text)| text.to_owned()).unwrap_or_default())
}

/// The text of a special token, which `tokenizer_config.json` gives as text or as an object.
fn special_token(config: Option<&Config>, key: &str) -> Result<String> {
    let Some(config) = config else { return Ok(String::new()) };
    let token = added_tokens::special_token(config, key)?;
    Ok(token.map(|token| token.content).unwrap_or_default())
}
