use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use futures::FutureExt;
use tokenizers::{
    AddedToken, PostProcessorWrapper,
    processors::{sequence::Sequence as Processors, template::TemplateProcessing},
};

use super::{
    budget::{self, Budget},
    file,
    normalizer::Normalizer,
    pipeline::{Failure, Pipeline, Reading},
    pre_tokenizer::Steps,
};
use crate::{Error, Result};

/// A tokenizer, and which of its tokens are control tokens.
pub struct Tokenizer {
    /// Its model, what is put around texts, and its decoder.
    inner: tokenizers::Tokenizer,
    pipeline: Pipeline,
    path: PathBuf,
    special_ids: HashSet<u32>,
    /// Control tokens by their texts, which text of users must never become.
    pub special: BTreeMap<String, AddedToken>,
    /// The texts of added tokens that are no control tokens, such as `<think>`.
    pub plain_added_texts: BTreeSet<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(|error| Error::model_because(path, "cannot be read", error))?;
        let parts = file::Parts::read(path, &json)?;
        let inner = guarded(|| parts.tokenizer(&json));
        let inner = inner.map_err(|error| Error::model_because(path, "is not a tokenizer", error))?;
        Self::with_steps(path, inner, parts.normalizer(path)?, parts.pre_tokenizer(path)?)
    }

    /// Wraps a tokenizer that was made of the file at `path`.
    pub fn new(path: &Path, inner: tokenizers::Tokenizer) -> Result<Self> {
        let parts = file::Parts::of(&inner).map_err(|error| Error::model_because(path, "is not a tokenizer", error))?;
        Self::with_steps(path, inner, parts.normalizer(path)?, parts.pre_tokenizer(path)?)
    }

    /// Wraps a tokenizer that was made of the file at `path`, with another normalizer and pre-tokenizer.
    pub fn with_steps(path: &Path, inner: tokenizers::Tokenizer, normalizer: Normalizer, steps: Steps) -> Result<Self> {
        let mut inner = inner;
        // A prompt is never cut or padded behind its author's back.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let pipeline = guarded(|| Pipeline::new(&mut inner, normalizer, steps))
            .map_err(|error| Error::model_because(path, "added_tokens or model: cannot be used", error))?;
        let added = inner.get_added_tokens_decoder();
        let (special, plain): (Vec<_>, Vec<_>) = added.into_iter().partition(|(_, token)| token.special);
        let by_text = |tokens: Vec<(u32, AddedToken)>| {
            let tokens = tokens.into_iter().map(|(_, token)| (token.content.clone(), token));
            tokens.filter(|(text, _)| !text.is_empty())
        };
        Ok(Self {
            path: path.to_owned(),
            special_ids: special.iter().map(|(id, _)| *id).collect(),
            special: by_text(special).collect(),
            plain_added_texts: by_text(plain).map(|(text, _)| text).collect(),
            inner,
            pipeline,
        })
    }

    /// The ids of `text`. Special tokens in it are recognised; `add_special_tokens` adds those the
    /// tokenizer puts around every text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.encode_now(text, if add_special_tokens { Reading::Whole } else { Reading::Part })
    }

    /// The ids of `text`, special tokens in it taken as plain text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_now(text, Reading::Plain)
    }

    fn encode_now(&self, text: &str, reading: Reading) -> Result<Vec<u32>> {
        let mut budget = Budget::unlimited();
        let encoded = budget::at_once(self.encode_within(text, reading, &mut budget));
        encoded.unwrap_or_else(|| Err(Error::internal("a text was not tokenized at once")))
    }

    /// The ids of `text`, in turns with others and no more of them than the budget has.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work at once.
    pub async fn encode_within(&self, text: &str, reading: Reading, budget: &mut Budget) -> Result<Vec<u32>> {
        let encoded = AssertUnwindSafe(self.pipeline.encode(&self.inner, text, reading, budget)).catch_unwind().await;
        match encoded.unwrap_or_else(|_| Err(Failure::Problem("it ended in a panic".into()))) {
            Ok(ids) => Ok(ids),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Problem(problem)) => Err(self.failed("encoding", problem)),
        }
    }

    /// As the tokenizers crate has it, all at once.
    #[cfg(test)]
    pub fn encode_whole(&self, text: &str) -> Vec<u32> {
        self.inner.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    /// The text of `ids`.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|error| self.failed("decoding", error))
    }

    /// Whether a token is a control token, which is never printed.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens in the vocabulary, the added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn failed(&self, what: &str, error: tokenizers::Error) -> Error {
        Error::Internal { reason: format!("{}: {what} failed", self.path.display()), source: Some(error.into()) }
    }
}

/// What the crate does of a file's tokenizer. It panics for some that make no sense: with merges into no token, with
/// post-processors that do not fit each other or name tokens that there are not.
pub fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("it ended in a panic".into()))
}

/// Puts these tokens before and after every text, if there are any.
pub fn surrounded(
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
) -> tokenizers::Result<Option<PostProcessorWrapper>> {
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let name = |token: &Option<(String, u32)>| token.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
    let single = [name(&bos), vec!["$A".to_owned()], name(&eos)].concat();
    let mut special: Vec<_> = bos.into_iter().chain(eos).collect();
    special.dedup();
    let template = TemplateProcessing::builder().try_single(single)?.special_tokens(special).build()?;
    Ok(Some(Processors::new(vec![template.into()]).into()))
}
