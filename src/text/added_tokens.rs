//! Added tokens that a directory names outside its `tokenizer.json`, by the rules of transformers.

use std::{collections::HashSet, path::Path};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{added_token_finder, class_defaults, lenient::ignore_invalid};
use crate::{Result, weights::Config};

/// Special tokens with a name of their own, in the order in which new ones get ids. All other keys that end alike come
/// after them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const LISTED: &str = "added_tokens_decoder";

/// Tokens to be added to a tokenizer.
#[derive(Default)]
pub struct AddedTokens {
    /// Their flags take precedence over the tokenizer's.
    listed: Vec<AddedToken>,
    /// Special tokens, but as the tokenizer has them where it has added them itself.
    named: Vec<AddedToken>,
    /// Special tokens of the tokenizer's class, where the vocabulary has them.
    defaults: Vec<AddedToken>,
    /// The ids that the model has room for.
    max_ids: Option<usize>,
}

impl AddedTokens {
    /// Reads the tokens of `tokenizer_config.json` and `added_tokens.json`.
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        Self::read_with(dir, config, |found| found)
    }

    /// Reads the same tokens and ignores invalid ones: a `tokenizer.json` is enough.
    pub fn read_leniently(dir: &Path, config: &Config) -> Result<Self> {
        Self::read_with(dir, config, |found| Ok(ignore_invalid(found)))
    }

    fn read_with(
        dir: &Path,
        config: &Config,
        checked: impl Fn(Result<ListedToken>) -> Result<ListedToken>,
    ) -> Result<Self> {
        let mut by_id = Vec::new();
        let listed = ignore_invalid(config.opt_object(LISTED));
        if let Some(list) = &listed {
            for (id, token) in list.entries() {
                by_id.extend(checked(listed_token(list, id, token))?);
            }
        }
        if listed.is_none()
            && let Some(file) = Config::read_if_there(&dir.join("added_tokens.json"))?
        {
            for (text, id) in file.entries() {
                by_id.extend(checked(bare_token(&file, text, id))?);
            }
        }
        by_id.sort_by_key(|(id, _)| *id);
        let mut listed: Vec<_> = by_id.into_iter().map(|(_, token)| token).collect();
        let named = named(config);
        let special: HashSet<_> = named.iter().map(|token| token.content.as_str()).collect();
        for token in &mut listed {
            token.special |= special.contains(token.content.as_str());
        }
        let defaults = class_defaults::tokens(config).map(|(_, text)| AddedToken::from(text, true)).collect();
        Ok(Self { listed, named, defaults, max_ids: None })
    }

    /// New ids are below this number, so that none is out of the model's range.
    #[must_use]
    pub fn below(mut self, max_ids: usize) -> Self {
        self.max_ids = Some(max_ids);
        self
    }

    /// Adds them.
    ///
    /// # Errors
    /// More tokens than anything could look for.
    pub fn add_to(self, inner: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut seen: HashSet<_> = added.values().map(|token| token.content.clone()).collect();
        seen.extend(self.listed.iter().map(|token| token.content.clone()));
        let named = self.named.into_iter().filter(|token| seen.insert(token.content.clone()));
        let named: Vec<_> = named.collect();
        let defaults = self.defaults.into_iter().filter(|token| inner.token_to_id(&token.content).is_some());
        let defaults: Vec<_> = defaults.filter(|token| seen.insert(token.content.clone())).collect();
        added_token_finder::check(seen.iter().map(String::as_str))?;
        // Each call rebuilds the automaton that finds added tokens, and most files repeat tokens that exist already.
        let is_new =
            |token: &AddedToken| inner.token_to_id(&token.content).is_none_or(|id| added.get(&id) != Some(token));
        let tokens = self.listed.into_iter().chain(named).chain(defaults).filter(is_new);
        let (known, mut new): (Vec<_>, Vec<_>) = tokens.partition(|token| inner.token_to_id(&token.content).is_some());
        if !known.is_empty() {
            inner.add_tokens(known)?;
        }
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let first_id = added.keys().map(|id| *id as usize + 1).max().unwrap_or(0);
        let room = self.max_ids.map_or(usize::MAX, |max| max.saturating_sub(first_id.max(inner.get_vocab_size(false))));
        if new.len() > room {
            let (first, count) = (&new[room].content, new.len() - room);
            tracing::warn!(first, count, "tokens for which the model has no room are ignored");
            new.truncate(room);
        }
        if !new.is_empty() {
            inner.add_tokens(new)?;
        }
        Ok(())
    }
}

/// A token and the id that a file gives it.
type ListedToken = Option<(u64, AddedToken)>;

fn listed_token(list: &Config, id: &str, token: &Value) -> Result<ListedToken> {
    let number = id.parse().map_err(|_| list.bad(id, "its key is not an id"))?;
    let token = added_token(token, false).filter(|_| token.is_object());
    token.map(|token| Some((number, token))).ok_or_else(|| list.bad(id, "not a token with a content"))
}

fn bare_token(file: &Config, text: &str, id: &Value) -> Result<ListedToken> {
    let id = id.as_u64().ok_or_else(|| file.bad(text, "not an id"))?;
    Ok(Some((id, AddedToken::from(text, false))))
}

/// The special tokens of a configuration.
fn named(config: &Config) -> Vec<AddedToken> {
    let others = config.keys().filter(|key| key.ends_with("_token") && !NAMED.contains(key));
    let others = others.filter(|key| config.get(key).is_some_and(|value| value.is_string() || value.is_object()));
    let mut tokens: Vec<_> =
        NAMED.into_iter().chain(others).filter_map(|key| ignore_invalid(special_token(config, key))).collect();
    let key =
        if config.get("extra_special_tokens").is_some() { "extra_special_tokens" } else { "additional_special_tokens" };
    let extra: Vec<&Value> = match config.get(key) {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(map)) => map.values().collect(),
        Some(_) => {
            tracing::warn!("{}", config.bad(key, "neither a list nor an object of tokens: it is ignored"));
            Vec::new()
        }
        None => Vec::new(),
    };
    for value in extra {
        match added_token(value, true) {
            Some(token) => tokens.push(token),
            None => tracing::warn!("{}", config.bad(key, &format!("{value} is no token: it is ignored"))),
        }
    }
    tokens.retain(|token| !token.content.is_empty());
    tokens
}

/// The special token under `key`.
pub fn special_token(config: &Config, key: &str) -> Result<Option<AddedToken>> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let token = added_token(value, true);
    token.map(Some).ok_or_else(|| config.bad(key, "neither a text nor an object with a content"))
}

/// A token that is given as text or as an object.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |key: &str, default| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = special || flag("special", false);
    let token = AddedToken::from(value.get("content")?.as_str()?, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special));
    Some(token)
}

/// `tokenizer_config.json`, with the tokens of `special_tokens_map.json` in place of its own unless it lists all
/// tokens, as newer files do. Its own make sense even so.
pub fn config(dir: &Path) -> Result<Option<Config>> {
    let path = dir.join("tokenizer_config.json");
    let config = Config::read_if_there(&path)?;
    let lists_all = config.as_ref().is_some_and(|config| config.get(LISTED).is_some());
    let map = if lists_all { None } else { Config::read_if_there(&dir.join("special_tokens_map.json"))? };
    let Some(map) = map else { return Ok(config) };
    let config = config.unwrap_or_else(|| Config::new(path, Map::new()));
    for key in ["bos_token", "eos_token"] {
        special_token(&config, key)?;
    }
    let values = map.entries().filter(|(_, value)| !value.is_null());
    let values: Map<_, _> = values.map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Some(config.with(values.into())))
}
