use std::{
    collections::{BTreeSet, HashSet},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tokenizers::{
    AddedToken, AddedVocabulary, Model, OffsetType, PostProcessorWrapper, PreTokenizer, Token,
    processors::{sequence::Sequence as Processors, template::TemplateProcessing},
};

use super::{
    added_tokens::AddedTokens,
    control::{ControlTokens, is_turn_marker, looks_like_control},
    control_names,
    decoding::{self, Decoding, Piece, Pieces},
    growth,
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
}

/// How often a word is cut anew where control tokens come of its parts, before it is cut into characters.
const MAX_CUTS: usize = 16;

/// A text that only a control token can write.
#[derive(Debug)]
struct Unwritable(String);

impl std::fmt::Display for Unwritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "only a control token of this model writes {:?}", self.0)
    }
}

impl std::error::Error for Unwritable {}

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
        };
        for (id, token) in special {
            this.control.add(id, token);
        }
        this
    }

    /// Makes control tokens of `bounds`, which begin or end a text or end an answer, and of turn markers that a template
    /// writes, although they are not flagged as special.
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
        (self.plain, self.unknown) = (OnceLock::new(), OnceLock::new());
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

    /// The ids of `text`, control tokens in it taken as plain text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| {
            let normalizer = self.inner.get_normalizer();
            let mut words = self.plain()?.extract_and_normalize(normalizer, text);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut words)?;
            }
            words.tokenize(|word| self.tokenize_plain(word.get(), 0))?;
            words.into_encoding(None, 0, OffsetType::None)
        });
        match encoding {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => match error.downcast_ref::<Unwritable>() {
                Some(unwritable) => Err(Error::config("messages", unwritable.to_string())),
                None => Err(self.failed("encoding", error)),
            },
        }
    }

    /// Finds added tokens in a text, control tokens not among them.
    fn plain(&self) -> tokenizers::Result<&AddedVocabulary> {
        if let Some(plain) = self.plain.get() {
            return Ok(plain);
        }
        let mut plain = self.inner.get_added_vocabulary().clone();
        let special = self.control.tokens().map(|control| control.token.clone().special(true));
        plain.add_tokens(special, self.inner.get_model(), self.inner.get_normalizer())?;
        plain.set_encode_special_tokens(true);
        Ok(self.plain.get_or_init(|| plain))
    }

    /// The tokens of a word, which is cut for as long as control tokens come of it.
    fn tokenize_plain(&self, word: &str, cuts: usize) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.inner.get_model().tokenize(word)?;
        let is_control = |token: &&Token| {
            let (from, end) = token.offsets;
            self.is_control(token.id, word.get(from..end).unwrap_or(word))
        };
        let inside = |token: &Token| {
            let (from, end) = token.offsets;
            let inner: Vec<usize> =
                word.get(from..end).unwrap_or(word).char_indices().map(|(at, _)| from + at).collect();
            // One of a single character stands alone.
            if inner.len() > 1 { vec![inner[inner.len() / 2]] } else { vec![from, end] }
        };
        let mut at: Vec<usize> = tokens.iter().filter(is_control).flat_map(inside).collect();
        if at.is_empty() {
            return Ok(tokens);
        }
        if cuts == MAX_CUTS {
            at = word.char_indices().map(|(at, _)| at).collect();
        }
        at.retain(|at| (1..word.len()).contains(at) && word.is_char_boundary(*at));
        at.dedup();
        if at.is_empty() {
            return self.spell(word);
        }
        let (mut tokens, mut from) = (Vec::new(), 0);
        for end in at.into_iter().chain([word.len()]) {
            let part = self.tokenize_plain(&word[from..end], cuts + 1)?;
            tokens.extend(part.into_iter().map(|token| Token::new(token.id, token.value, (from, end))));
            from = end;
        }
        Ok(tokens)
    }

    /// The bytes of a character, or what stands for one that is in no token.
    fn spell(&self, character: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.inner.get_model();
        let byte = |byte: u8| {
            let name = format!("<0x{byte:02X}>");
            model.token_to_id(&name).map(|id| Token::new(id, name, (0, character.len())))
        };
        if let Some(bytes) = character.bytes().map(byte).collect() {
            return Ok(bytes);
        }
        let unknown = self.unknown().ok_or_else(|| Unwritable(character.to_owned()))?;
        Ok(vec![Token::new(unknown, String::new(), (0, character.len()))])
    }

    /// What becomes of text that is in no token, unless it ends an answer, say.
    fn unknown(&self) -> Option<u32> {
        *self.unknown.get_or_init(|| {
            let tokens = guarded(|| self.inner.get_model().tokenize("\u{FDEF}")).ok()?;
            let unknown = tokens.into_iter().find(|token| self.control.contains(token.id))?;
            let is_bound = self.bounds.contains(&unknown.id) || control_names::is_control(&unknown.value);
            (!is_bound).then_some(unknown.id)
        })
    }

    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// Whether a token that came of this text is a control token. What stands for text that is in no token is none.
    pub fn is_control(&self, id: u32, text: &str) -> bool {
        self.control.contains(id)
            && (self.unknown() != Some(id) || self.token_of(id).is_some_and(|token| token == text.trim()))
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
