//! Tokenizers: text to ids and ids to text, with a notion of control tokens.

use std::{
    collections::{BTreeSet, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use futures::FutureExt;
use tokenizers::{
    AddedToken, Model, PostProcessorWrapper,
    processors::{sequence::Sequence as Processors, template::TemplateProcessing},
};

use super::{
    added_tokens::AddedTokens,
    budget::{self, TokenizeBudget},
    control_tokens::{ControlTokens, is_ordinary, is_turn_marker},
    encode_pipeline::{EncodeFailure, EncodeMode, EncodePipeline},
    plain_words::Unwritable,
    rendered_prompt::ValueSpans,
    token_decoder::{self, DecodedPiece, DecoderKind, PieceDecoder, TokenDecoder},
    tokenizer_json::{self, TokenizerSteps},
};
use crate::{Error, Result, files};

/// A tokenizer, and which of its tokens are control tokens.
pub struct Tokenizer {
    /// The model, and the tokens it puts around texts.
    inner: tokenizers::Tokenizer,
    pipeline: EncodePipeline,
    path: PathBuf,
    decoder: TokenDecoder,
    /// Tokens that are never printed.
    special_ids: HashSet<u32>,
    control: ControlTokens,
    /// The texts of added tokens that are no control tokens, such as `<think>`.
    plain_added_texts: BTreeSet<String>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, to which these tokens are added.
    pub fn read(path: &Path, added: AddedTokens) -> Result<Self> {
        let json = files::read_limited(path, files::MAX_VOCABULARY)?;
        let parts = tokenizer_json::TokenizerJson::read(path, &json)?;
        let inner = guarded(|| {
            let mut inner = parts.tokenizer(&json)?;
            added.add_to(&mut inner)?;
            Ok(inner)
        });
        let inner = inner.map_err(|error| Error::model_because(path, "is not a tokenizer", error))?;
        Self::with_steps(path, inner, parts.steps(path)?)
    }

    /// Wraps a tokenizer that was made of the file at `path`.
    pub fn new(path: &Path, inner: tokenizers::Tokenizer) -> Result<Self> {
        let parts = tokenizer_json::TokenizerJson::of(&inner)
            .map_err(|error| Error::model_because(path, "is not a tokenizer", error))?;
        Self::with_steps(path, inner, parts.steps(path)?)
    }

    /// Wraps a tokenizer that was made of the file at `path`, with other steps before and after its model.
    pub fn with_steps(path: &Path, inner: tokenizers::Tokenizer, steps: TokenizerSteps) -> Result<Self> {
        let mut inner = inner;
        // A prompt is never cut or padded behind its author's back.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let pipeline = guarded(|| EncodePipeline::new(&mut inner, steps.normalizer, steps.pre_tokenizer))
            .map_err(|error| Error::model_because(path, "added_tokens or model: cannot be used", error))?;
        // One that has been special stays so, whatever is said of it later.
        let is_special = |token: &AddedToken| inner.get_added_vocabulary().is_special_token(&token.content);
        let added = inner.get_added_tokens_decoder();
        let (special, plain): (Vec<_>, Vec<_>) = added.into_iter().partition(|(_, token)| is_special(token));
        let plain_added_texts = plain.into_iter().map(|(_, token)| token.content).filter(|text| !text.is_empty());
        let mut this = Self {
            path: path.to_owned(),
            decoder: steps.decoder,
            special_ids: special.iter().map(|(id, _)| *id).collect(),
            control: ControlTokens::default(),
            plain_added_texts: plain_added_texts.collect(),
            inner,
            pipeline,
        };
        for (id, token) in special {
            this.control.add(id, token);
        }
        Ok(this)
    }

    /// Makes control tokens of `bounds`, which begin or end a text or end an answer, and of turn markers that a
    /// template writes, although they are not flagged as special.
    pub fn control_also<'a>(&mut self, bounds: &[u32], templates: impl Iterator<Item = &'a str>) {
        self.control.bound(bounds);
        let templates: Vec<&str> = templates.collect();
        let is_written = |text: &&String| templates.iter().any(|template| template.contains(text.as_str()));
        let markers = self.plain_added_texts.iter().filter(|text| is_turn_marker(text)).filter(is_written);
        let markers: Vec<u32> = markers.filter_map(|text| self.id_of(text)).collect();
        let added = self.inner.get_added_tokens_decoder();
        for id in bounds.iter().chain(&markers).copied().filter(|id| !self.control.contains(*id)).collect::<Vec<_>>() {
            let Some(text) = self.token_of(id).filter(|text| !is_ordinary(text) || markers.contains(&id)) else {
                continue;
            };
            self.plain_added_texts.remove(&text);
            let token = added.get(&id).cloned().unwrap_or_else(|| AddedToken::from(text, true));
            self.control.add(id, token);
        }
    }

    /// The ids of `text`, in which special tokens are recognized. `add_special_tokens` puts the tokenizer's own (BOS,
    /// EOS) around it.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.encode_now(text, if add_special_tokens { EncodeMode::Document } else { EncodeMode::Fragment })
    }

    /// The ids of `text`, control tokens in it taken as plain text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_now(text, EncodeMode::Plain { first: true })
    }

    fn encode_now(&self, text: &str, mode: EncodeMode<'_>) -> Result<Vec<u32>> {
        let mut budget = TokenizeBudget::unlimited();
        let encoded = budget::at_once(self.encode_within(text, mode, &mut budget));
        encoded.unwrap_or_else(|| Err(Error::internal("a text was not tokenized at once")))
    }

    /// The ids of `text`, in turns with others and no more of them than the budget has.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work at once.
    pub async fn encode_within(
        &self,
        text: &str,
        mode: EncodeMode<'_>,
        budget: &mut TokenizeBudget,
    ) -> Result<Vec<u32>> {
        let ids = self.encode_checked(text, mode, budget).await?;
        ids.ok_or_else(|| Error::internal("a text was not tokenized"))
    }

    /// The ids of `text`, in which characters of values are no part of a control token; none if they would be.
    ///
    /// # Cancel safety
    /// As [`encode_within`](Self::encode_within).
    pub async fn encode_rendered(
        &self,
        text: &str,
        given: ValueSpans<'_>,
        budget: &mut TokenizeBudget,
    ) -> Result<Option<Vec<u32>>> {
        self.encode_checked(text, EncodeMode::Rendered(given), budget).await
    }

    async fn encode_checked(
        &self,
        text: &str,
        mode: EncodeMode<'_>,
        budget: &mut TokenizeBudget,
    ) -> Result<Option<Vec<u32>>> {
        let encoded = self.pipeline.encode((&self.inner, &self.control), text, mode, budget);
        match AssertUnwindSafe(encoded).catch_unwind().await {
            Ok(Ok(ids)) => Ok(Some(ids)),
            Ok(Err(EncodeFailure::Forged)) => Ok(None),
            Ok(Err(EncodeFailure::Error(error))) => Err(error),
            Ok(Err(EncodeFailure::Internal(error))) => match error.downcast_ref::<Unwritable>() {
                Some(unwritable) => Err(Error::config("messages", unwritable.to_string())),
                None => Err(self.failed("encoding", error)),
            },
            Err(_) => Err(self.failed("encoding", "it ended in a panic".into())),
        }
    }

    /// As the tokenizers crate has it, all at once.
    #[cfg(test)]
    pub fn encode_whole(&self, text: &str) -> Vec<u32> {
        self.inner.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// The text of `ids`.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let tokens = ids.iter().filter_map(|id| self.written(*id)).collect();
        guarded(|| self.decoder.decode(tokens)).map_err(|error| self.failed("decoding", error))
    }

    pub fn decoder_kind(&self) -> &DecoderKind {
        &self.decoder.kind
    }

    /// The bytes of a token that is bytes.
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        token_decoder::bytes(self.written(id).unwrap_or_default())
    }

    /// Decodes one token by itself.
    pub fn piece_of(&self, id: u32, pieces: &PieceDecoder) -> Result<DecodedPiece> {
        let token = self.written(id).unwrap_or_default();
        guarded(|| self.decoder.piece(token, pieces)).map_err(|error| self.failed("decoding", error))
    }

    /// A token as decoders see it.
    fn written(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().simple_id_to_token(id);
        added.or_else(|| self.inner.get_model().id_to_token(id))
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

/// Runs code of the tokenizers crate, which panics for some invalid files: merges into no token, post-processors that
/// do not fit each other or name unknown tokens.
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
