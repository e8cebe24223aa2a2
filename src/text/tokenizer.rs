mod plain_text;

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tokenizers::{
    AddedToken, AddedVocabulary, Model, PostProcessorWrapper,
    processors::{sequence::Sequence as Processors, template::TemplateProcessing},
};

use super::{
    added_tokens::AddedTokens,
    control::{ControlTokens, MAX_TEXT_BYTES, is_turn_marker, looks_like_control},
    decoding::{self, Decoding, Piece, Pieces},
    growth,
    stop_strings::Automaton,
};
use crate::{Error, Result};

/// A tokenizer, and which of its tokens are control tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    decoding: Decoding,
    /// Tokens that are never printed.
    special_ids: HashSet<u32>,
    control: ControlTokens,
    /// Those that begin or end a text, or end an answer.
    bounds: HashSet<u32>,
    /// The texts of added tokens that are no control tokens, such as `<think>`.
    plain_added_texts: BTreeSet<String>,
    /// Added tokens, for texts in which control tokens are plain text. Few texts need it.
    plain: OnceLock<AddedVocabulary>,
    /// What becomes of text that is in no token.
    unknown: OnceLock<Option<u32>>,
    /// The strings of a template, and what finds those of them and of the added tokens that it may look for in texts.
    known: OnceLock<(Vec<String>, Automaton)>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, to which these tokens are added.
    pub fn read(path: &Path, added: AddedTokens) -> Result<Self> {
        let json = fs::read(path).map_err(|error| Error::model_because(path, "cannot be read", error))?;
        growth::check(path, &json)?;
        let inner = guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(&json)?;
            added.add_to(&mut inner)?;
            Ok(inner)
        });
        let inner = inner.map_err(|error| Error::model_because(path, "is not a tokenizer", error))?;
        Ok(Self::new(path, inner))
    }

    /// Wraps a tokenizer that was made of the file at `path`.
    pub fn new(path: &Path, mut inner: tokenizers::Tokenizer) -> Self {
        // A prompt is never cut or padded behind its author's back.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        // One that has been special stays so, whatever is said of it later.
        let is_special = |token: &AddedToken| inner.get_added_vocabulary().is_special_token(&token.content);
        let added = inner.get_added_tokens_decoder();
        let (special, plain): (Vec<_>, Vec<_>) = added.into_iter().partition(|(_, token)| is_special(token));
        let plain_added_texts = plain.into_iter().map(|(_, token)| token.content).filter(|text| !text.is_empty());
        let mut this = Self {
            path: path.to_owned(),
            decoding: Decoding::of(inner.get_decoder()),
            special_ids: special.iter().map(|(id, _)| *id).collect(),
            control: ControlTokens::default(),
            bounds: HashSet::new(),
            plain_added_texts: plain_added_texts.collect(),
            inner,
            plain: OnceLock::new(),
            unknown: OnceLock::new(),
            known: OnceLock::new(),
        };
        for (id, token) in special {
            this.control.add(id, token);
        }
        this
    }

    /// Makes control tokens of `bounds`, which begin or end a text or end an answer, and of turn markers that a
    /// template writes, although they are not flagged as special.
    pub fn control_also<'a>(&mut self, bounds: &[u32], templates: impl Iterator<Item = &'a str>) {
        self.bounds.extend(bounds);
        let templates: Vec<&str> = templates.collect();
        let is_written = |text: &&String| templates.iter().any(|template| template.contains(text.as_str()));
        let markers = self.plain_added_texts.iter().filter(|text| is_turn_marker(text)).filter(is_written);
        let markers: Vec<u32> = markers.filter_map(|text| self.id_of(text)).collect();
        let added = self.inner.get_added_tokens_decoder();
        for id in bounds.iter().chain(&markers).copied().filter(|id| !self.control.contains(*id)).collect::<Vec<_>>() {
            let Some(text) = self.token_of(id).filter(|text| looks_like_control(text) || markers.contains(&id)) else {
                continue;
            };
            self.plain_added_texts.remove(&text);
            let token = added.get(&id).cloned().unwrap_or_else(|| AddedToken::from(text, true));
            self.control.add(id, token);
        }
        (self.plain, self.unknown, self.known) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
    }

    /// The ids of `text`. Special tokens in it are recognised; `add_special_tokens` adds those the
    /// tokenizer puts around every text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special_tokens));
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|error| self.failed("encoding", error))
    }

    /// The ids of `text` and the bytes of it that each is for. Control tokens in it are recognized.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, (usize, usize))>> {
        let encoding = guarded(|| self.inner.encode(text, false)).map_err(|error| self.failed("encoding", error))?;
        let within = |(from, end): &(usize, usize)| {
            let end = text.ceil_char_boundary(*end);
            (text.floor_char_boundary(*from).min(end), end)
        };
        let offsets = encoding.get_offsets().iter().map(within);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// Whether a token that came of this text is a control token. What stands for text that is in no token is none.
    pub fn is_control(&self, id: u32, text: &str) -> bool {
        self.control.contains(id)
            && (self.unknown() != Some(id) || self.token_of(id).is_some_and(|token| token == text.trim()))
    }

    /// What a template, whose code has these strings, may look for in texts: they, and added tokens that are text, but
    /// nothing that could be made part of a control token.
    pub fn texts_known_to(&self, literals: &[String]) -> Cow<'_, Automaton> {
        let build = || {
            let texts = literals.iter().chain(&self.plain_added_texts).filter(|text| text.len() <= MAX_TEXT_BYTES);
            let texts = texts.filter(|text| !self.control.resembles(text));
            Automaton::new(texts.map(String::as_bytes))
        };
        // A tokenizer has one template.
        let (of, known) = self.known.get_or_init(|| (literals.to_vec(), build()));
        if of == literals { Cow::Borrowed(known) } else { Cow::Owned(build()) }
    }

    /// The text of `ids`.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|error| self.failed("decoding", error))
    }

    pub fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    /// The bytes of a token that is bytes.
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        decoding::bytes(self.written(id))
    }

    /// What a token is to a decoder of pieces.
    pub fn piece_of(&self, id: u32, pieces: &Pieces) -> Result<Piece> {
        guarded(|| pieces.piece(self.written(id))).map_err(|error| self.failed("decoding", error))
    }

    /// A token as decoders see it; an id that there is not is nothing.
    fn written(&self, id: u32) -> String {
        let added = self.inner.get_added_vocabulary().simple_id_to_token(id);
        added.or_else(|| self.inner.get_model().id_to_token(id)).unwrap_or_default()
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
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
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
