//! Words to token ids, in time that is linear in a word or close to it.

use std::{collections::HashSet, sync::OnceLock};

use tokenizers::{Model as _, ModelWrapper, models::wordpiece::WordPiece};

use super::{budget::TokenizeBudget, pattern::BoxError};

/// What SentencePiece's models have for a space.
const SPACE: char = '▁';
/// Bytes of words that are not worth a look at the vocabulary.
const SHORT_WORD: usize = 4 << 10;
/// Characters that are counted at a time.
const COUNTED: usize = 512;
/// Bytes of words that are cut where there is no space, too.
const LONG_WORD: usize = 4 << 10;

/// What is known of a vocabulary once it has been looked at.
#[derive(Default)]
pub struct Model {
    /// Characters before spaces in tokens.
    before_spaces: OnceLock<HashSet<char>>,
    /// Characters that follow each other in tokens.
    neighbors: OnceLock<HashSet<(char, char)>>,
    longest: OnceLock<LongestToken>,
    /// Characters that are tokens.
    characters: OnceLock<HashSet<char>>,
}

/// The longest token.
#[derive(Clone, Copy, Default)]
pub struct LongestToken {
    pub bytes: usize,
    pub chars: usize,
}

impl Model {
    pub fn longest_token(&self, model: &ModelWrapper) -> LongestToken {
        *self.longest.get_or_init(|| {
            model.get_vocab().keys().fold(LongestToken::default(), |longest, token| LongestToken {
                bytes: longest.bytes.max(token.len()),
                chars: longest.chars.max(token.chars().count()),
            })
        })
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
        let characters = self.characters.get_or_init(|| characters(model));
        let (mut known, mut chars) = (0, word.chars());
        while !chars.as_str().is_empty() {
            known += chars.by_ref().take(COUNTED).filter(|c| characters.contains(c)).count();
            budget.yield_if_due().await;
        }
        known / self.longest_token(model).chars.max(1)
    }

    /// Appends the ids of a word.
    pub fn tokenize(&self, model: &ModelWrapper, word: &str, ids: &mut Vec<u32>) -> Result<(), BoxError> {
        match model {
            ModelWrapper::WordPiece(pieces) => word_pieces(pieces, self.longest_token(model).bytes, word, ids),
            _ => {
                ids.extend(model.tokenize(word)?.into_iter().map(|token| token.id));
                Ok(())
            }
        }
    }

    /// How much of a word has the same tokens whatever follows it: no token holds both characters at its end. What
    /// SentencePiece's models call a word may be a book.
    pub fn cut(&self, model: &ModelWrapper, word: &str) -> usize {
        let ModelWrapper::BPE(bpe) = model else { return word.len() };
        if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() || word.len() < SHORT_WORD {
            return word.len();
        }
        let known = |c: char| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some();
        let before_spaces = self.before_spaces.get_or_init(|| before_spaces(model));
        let apart = |at: usize, a: char, b: char| match b {
            SPACE => !before_spaces.contains(&a),
            _ => at >= LONG_WORD && !self.neighbors.get_or_init(|| neighbors(model)).contains(&(a, b)),
        };
        let mut pairs = word.char_indices().zip(word.char_indices().skip(1));
        let cut = pairs.find(|((_, a), (at, b))| apart(*at, *a, *b) && known(*a) && known(*b));
        cut.map_or(word.len(), |(_, (at, _))| at)
    }
}

fn before_spaces(model: &ModelWrapper) -> HashSet<char> {
    let vocabulary = model.get_vocab();
    let spaced = vocabulary.keys().filter(|token| token.contains(SPACE));
    spaced
        .flat_map(|token| token.chars().zip(token.chars().skip(1)))
        .filter(|(_, b)| *b == SPACE)
        .map(|(a, _)| a)
        .collect()
}

fn characters(model: &ModelWrapper) -> HashSet<char> {
    let vocabulary = model.get_vocab();
    let single = |token: &String| {
        let mut chars = token.chars();
        chars.next().filter(|_| chars.as_str().is_empty())
    };
    vocabulary.keys().filter_map(single).collect()
}

fn neighbors(model: &ModelWrapper) -> HashSet<(char, char)> {
    let vocabulary = model.get_vocab();
    vocabulary.keys().flat_map(|token| token.chars().zip(token.chars().skip(1))).collect()
}

/// As the tokenizers crate, which would try every end of a word at every place in it.
fn word_pieces(pieces: &WordPiece, longest: usize, word: &str, ids: &mut Vec<u32>) -> Result<(), BoxError> {
    let known = ids.len();
    let (mut at, mut piece) = (0, String::new());
    let too_long = word.chars().nth(pieces.max_input_chars_per_word).is_some();
    while at < word.len() && !too_long {
        let rest = &word[at..];
        let prefix = if at > 0 { &*pieces.continuing_subword_prefix } else { "" };
        let most = longest.saturating_sub(prefix.len());
        let ends = rest.char_indices().map(|(start, c)| start + c.len_utf8()).take_while(|end| *end <= most);
        let ends: Vec<_> = ends.collect();
        let found = ends.into_iter().rev().find_map(|end| {
            piece.clear();
            piece.push_str(prefix);
            piece.push_str(&rest[..end]);
            pieces.token_to_id(&piece).map(|id| (id, end))
        });
        let Some((id, end)) = found else { break };
        ids.push(id);
        at += end;
    }
    if at < word.len() {
        ids.truncate(known);
        ids.push(pieces.token_to_id(&pieces.unk_token).ok_or("unk_token is not in the vocabulary")?);
    }
    Ok(())
}
