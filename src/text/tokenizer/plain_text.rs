//! Text of which no control token may come.

use std::fmt;

use tokenizers::{AddedVocabulary, Model, OffsetType, PreTokenizer, Token};

use super::{Tokenizer, guarded};
use crate::{Error, Result, text::control_names};

/// How often a word is cut anew where control tokens come of its parts, before it is cut into characters.
const MAX_CUTS: usize = 16;

/// A text that only a control token can write.
#[derive(Debug)]
struct Unwritable(String);

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "only a control token of this model writes {:?}", self.0)
    }
}

impl std::error::Error for Unwritable {}

impl Tokenizer {
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
    pub(super) fn unknown(&self) -> Option<u32> {
        *self.unknown.get_or_init(|| {
            let tokens = guarded(|| self.inner.get_model().tokenize("\u{FDEF}")).ok()?;
            let unknown = tokens.into_iter().find(|token| self.control.contains(token.id))?;
            let is_bound = self.bounds.contains(&unknown.id) || control_names::is_control(&unknown.value);
            (!is_bound).then_some(unknown.id)
        })
    }
}
