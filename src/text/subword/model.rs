//! The subword model of a tokenizer, with tables that are built when a word first needs them.

use std::{collections::HashSet, ops::Range, sync::OnceLock};

use tokenizers::{Model as _, ModelWrapper, models::bpe::MergeMap};

use super::{bpe, unigram::UnigramSplitter, word_piece};
use crate::text::{budget::TokenizeBudget, pattern::BoxError};

/// SentencePiece's character for a space.
const SPACE: char = '▁';
/// Bytes of words that are not worth a look for spaces inside.
const SHORT_WORD: usize = 4 << 10;
/// Bytes of words that the tokenizers crate merges at a stretch, in less time than it takes to read its merges once.
const CRATE_WORD: usize = 64 << 10;
/// Characters that are counted at a time.
const COUNTED: usize = 512;

/// Tables beside those of the tokenizers crate. Each is built when it is first needed.
#[derive(Default)]
pub struct SubwordModel {
    vocabulary: OnceLock<VocabularyFacts>,
    /// None if they cannot be had.
    merges: OnceLock<Option<MergeMap>>,
    unigram: OnceLock<Option<UnigramSplitter>>,
}

/// Facts from one pass over the vocabulary.
#[derive(Default)]
pub struct VocabularyFacts {
    /// Bytes of the longest token.
    pub most_bytes: usize,
    /// Characters of the token that has most.
    pub most_chars: usize,
    /// Characters that are tokens.
    characters: HashSet<char>,
    /// Characters before spaces in tokens.
    before_spaces: HashSet<char>,
}

impl VocabularyFacts {
    fn of(model: &ModelWrapper) -> Self {
        let mut facts = Self::default();
        for token in model.get_vocab().into_keys() {
            let (mut count, mut last) = (0, None);
            for c in token.chars() {
                if c == SPACE {
                    facts.before_spaces.extend(last);
                }
                (count, last) = (count + 1, Some(c));
            }
            if count == 1 {
                facts.characters.extend(last);
            }
            facts.most_bytes = facts.most_bytes.max(token.len());
            facts.most_chars = facts.most_chars.max(count);
        }
        facts
    }
}

impl SubwordModel {
    pub fn vocabulary(&self, model: &ModelWrapper) -> &VocabularyFacts {
        self.vocabulary.get_or_init(|| VocabularyFacts::of(model))
    }

    /// The fewest tokens of a long word: a character that is a token is always in one, whatever becomes of others.
    pub async fn least_tokens(&self, model: &ModelWrapper, word: &str, budget: &mut TokenizeBudget) -> usize {
        match model {
            ModelWrapper::BPE(bpe) if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() => {
                return 0;
            }
            ModelWrapper::BPE(_) | ModelWrapper::Unigram(_) => {}
            _ => return 0,
        }
        let VocabularyFacts { characters, most_chars, .. } = self.vocabulary(model);
        let (mut known, mut chars) = (0, word.chars());
        while !chars.as_str().is_empty() {
            known += chars.by_ref().take(COUNTED).filter(|c| characters.contains(c)).count();
            budget.yield_if_due().await;
        }
        known / most_chars.max(&1)
    }

    /// Gives each token of a word, and the bytes of the word that became it, to `emit`. A character that becomes
    /// several tokens gives each of them its bytes, or a part of them.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work; tokens of this word may have been given by then.
    pub async fn tokenize(
        &self,
        model: &ModelWrapper,
        word: &str,
        budget: &mut TokenizeBudget,
        mut emit: impl FnMut(u32, Range<usize>),
    ) -> Result<(), BoxError> {
        match model {
            ModelWrapper::BPE(bpe) if word.len() > CRATE_WORD => {
                if self.merges.get().is_none() {
                    // Another prompt may have built the same by now.
                    let _ = self.merges.set(bpe::merges(bpe, budget).await.ok());
                }
                if let Some(Some(merges)) = self.merges.get() {
                    return bpe::tokenize(bpe, merges, word, budget, emit).await;
                }
            }
            ModelWrapper::Unigram(unigram) => {
                let splitter = self.unigram.get_or_init(|| UnigramSplitter::new(unigram).ok());
                if let Some(splitter) = splitter {
                    return splitter.tokenize(word, budget, emit).await;
                }
            }
            ModelWrapper::WordPiece(pieces) => {
                let longest = self.vocabulary(model).most_bytes;
                return word_piece::tokenize(pieces, longest, word, budget, emit).await;
            }
            _ => {}
        }
        for token in model.tokenize(word)? {
            emit(token.id, token.offsets.0..token.offsets.1);
        }
        Ok(())
    }

    /// How much of a word has the same tokens whatever follows it, since no token holds both characters at its end. A
    /// word of SentencePiece's models may be a book: its own words are in the crate's cache.
    pub fn cut(&self, model: &ModelWrapper, word: &str) -> usize {
        let ModelWrapper::BPE(bpe) = model else { return word.len() };
        if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() || word.len() < SHORT_WORD {
            return word.len();
        }
        let known = |c: char| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some();
        let before_spaces = &self.vocabulary(model).before_spaces;
        let mut pairs = word.char_indices().zip(word.char_indices().skip(1));
        let cut = pairs.find(|((_, a), (_, b))| *b == SPACE && !before_spaces.contains(a) && known(*a) && known(*b));
        cut.map_or(word.len(), |(_, (at, _))| at)
    }
}
