//! The GPT-2 tokenizer of a directory with `vocab.json` and `merges.txt` in place of a `tokenizer.json`.

use std::{collections::HashMap, path::Path};

use serde_json::{Map, json};
use tokenizers::{
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{
    Tokenizer,
    added_tokens::{AddedTokens, special_token},
    lenient::ignore_invalid,
    tokenizer::surrounded,
};
use crate::{Error, Result, files, weights::Config};

const MERGES: &str = "merges.txt";

/// Whether a directory has these files.
pub fn is_there(dir: &Path) -> bool {
    files::exists(&dir.join("vocab.json")) && files::exists(&dir.join(MERGES))
}

/// The configuration, with GPT-2's default for each special token that it omits.
pub fn config(dir: &Path, config: Option<Config>) -> Config {
    let config = config.unwrap_or_else(|| Config::new(dir.join("tokenizer_config.json"), Map::new()));
    let end = "<|endoftext|>";
    config.or(json!({"bos_token": end, "eos_token": end, "unk_token": end}))
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
    let bytes = files::read_limited(&path, files::MAX_VOCABULARY)?;
    let vocab: HashMap<String, u32> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::model_because(&path, "is not an object of tokens and their ids", error))?;
    let merges = merges(&dir.join(MERGES), vocab.keys().map(String::len).max().unwrap_or(0))?;
    let bpe = BPE::builder().vocab_and_merges(Vocab::from_iter(vocab), merges);
    let bad = |error| Error::model_because(&path, "is not the vocabulary of merges.txt", error);
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(bad)?);
    let prefix = ignore_invalid(config.bool_or("add_prefix_space", false));
    inner.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    AddedTokens::read(dir, config)?.add_to(&mut inner).map_err(bad)?;
    let around = |adds: &str, key: &str| -> Result<Option<(String, u32)>> {
        let token = special_token(config, key)?.filter(|_| ignore_invalid(config.bool_or(adds, false)));
        Ok(token.and_then(|token| inner.token_to_id(&token.content).map(|id| (token.content, id))))
    };
    let (bos, eos) = (around("add_bos_token", "bos_token")?, around("add_eos_token", "eos_token")?);
    inner.with_post_processor(surrounded(bos, eos).map_err(bad)?);
    Tokenizer::new(&path, inner)
}

/// Pairs of tokens, the first to be merged first. The longest token has `longest` bytes.
fn merges(path: &Path, longest: usize) -> Result<Merges> {
    let text = files::read_text(path, files::MAX_VOCABULARY)?;
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
