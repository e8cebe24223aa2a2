//! The tokenizer of directories that have a `vocab.json` and a `merges.txt` in place of a `tokenizer.json`: GPT-2's, as
//! transformers makes it of them.

use std::{collections::HashMap, fs, path::Path};

use serde_json::{Map, Value, json};
use tokenizers::{
    AddedToken,
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{Tokenizer, tokenizer::surrounded};
use crate::{Error, Result, weights::Config};

const MERGES: &str = "merges.txt";
/// Under which keys special tokens are.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Whether a directory has these files.
pub fn is_there(dir: &Path) -> bool {
    dir.join("vocab.json").exists() && dir.join(MERGES).exists()
}

/// The keys of `tokenizer_config.json`, with those of `special_tokens_map.json` and GPT-2's own tokens in place of those
/// that it leaves out.
pub fn config(dir: &Path, config: Option<Config>) -> Result<Config> {
    let config = config.unwrap_or_else(|| Config::new(dir.join("tokenizer_config.json"), Map::new()));
    let map = Config::read_if_there(&dir.join("special_tokens_map.json"))?;
    let config = map.map_or_else(|| config.clone(), |map| config.or_of(map));
    let end = "<|endoftext|>";
    Ok(config.or(json!({"bos_token": end, "eos_token": end, "unk_token": end})))
}

/// Builds the tokenizer of such a configuration.
pub fn tokenizer(dir: &Path, config: &Config) -> Result<Tokenizer> {
    let key = "tokenizer_class";
    if let Some(class) = config.opt_str(key)?.filter(|class| !class.starts_with("GPT2Tokenizer")) {
        return Err(
            config.bad(key, &format!("without a tokenizer.json, {class} is not supported: only GPT2Tokenizer is"))
        );
    }
    let path = dir.join("vocab.json");
    let bytes = read(&path)?;
    let vocab: HashMap<String, u32> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::model_because(&path, "is not an object of tokens and their ids", error))?;
    let merges = merges(&dir.join(MERGES), vocab.keys().map(String::len).max().unwrap_or(0))?;
    let bpe = BPE::builder().vocab_and_merges(Vocab::from_iter(vocab), merges);
    let bad = |error| Error::model_because(&path, "is not the vocabulary of merges.txt", error);
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(bad)?);
    let prefix = config.bool_or("add_prefix_space", false)?;
    inner.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    for token in added_tokens(dir, config)? {
        let added = if token.special { inner.add_special_tokens([token]) } else { inner.add_tokens([token]) };
        added.map_err(bad)?;
    }
    let around = |adds: &str, key: &str| -> Result<Option<(String, u32)>> {
        let token = if config.bool_or(adds, false)? { special_token(config, key)? } else { None };
        Ok(token.and_then(|token| inner.token_to_id(&token.content).map(|id| (token.content, id))))
    };
    let (bos, eos) = (around("add_bos_token", "bos_token")?, around("add_eos_token", "eos_token")?);
    inner.with_post_processor(surrounded(bos, eos).map_err(bad)?);
    Tokenizer::new(&path, inner)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::model_because(path, "cannot be read", error))
}

/// Pairs of tokens, the first to be merged first. The longest token has `longest` bytes.
fn merges(path: &Path, longest: usize) -> Result<Merges> {
    let text = String::from_utf8(read(path)?).map_err(|error| Error::model_because(path, "is not UTF-8", error))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let merge = |(number, line): (usize, &str)| match line.split_once(' ') {
        // The builder checks all but this, for which it panics.
        Some((left, right)) if left.len() + right.len() <= longest => Ok((left.to_owned(), right.to_owned())),
        _ => {
            Err(Error::model(path, format!("line {}: {line:?} is not a pair of tokens that make a token", number + 1)))
        }
    };
    lines.map(merge).collect()
}

/// Those of the configuration by their ids, those of `added_tokens.json`, and the special ones.
fn added_tokens(dir: &Path, config: &Config) -> Result<Vec<AddedToken>> {
    let mut by_id = Vec::new();
    if let Some(file) = Config::read_if_there(&dir.join("added_tokens.json"))? {
        for (text, id) in file.entries() {
            let id = id.as_u64().ok_or_else(|| file.bad(text, "not an id"))?;
            by_id.push((id, AddedToken::from(text.clone(), false)));
        }
    }
    if let Some(decoder) = config.opt_object("added_tokens_decoder")? {
        for (id, token) in decoder.entries() {
            let number = id.parse().map_err(|_| decoder.bad(id, "its key is not an id"))?;
            let token = added_token(token, false).ok_or_else(|| decoder.bad(id, "not a token with a content"))?;
            by_id.push((number, token));
        }
    }
    by_id.sort_by_key(|(id, _)| *id);
    let special = SPECIAL.iter().filter_map(|key| special_token(config, key).transpose());
    by_id.into_iter().map(|(_, token)| Ok(token)).chain(special).collect()
}

fn special_token(config: &Config, key: &str) -> Result<Option<AddedToken>> {
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
