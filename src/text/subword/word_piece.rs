//! WordPiece: at each place in a word, the longest token.

use std::ops::Range;

use tokenizers::{Model as _, models::wordpiece::WordPiece};

use crate::text::{budget::TokenizeBudget, pattern::BoxError};

/// Gives the tokens of a word to `emit`, as the tokenizers crate makes them, which tries every end of a word at every
/// place in it. No token has more than `longest` bytes.
///
/// # Cancel safety
/// Dropping the future ends the work; tokens of this word may have been given by then.
pub async fn tokenize(
    model: &WordPiece,
    longest: usize,
    word: &str,
    budget: &mut TokenizeBudget,
    mut emit: impl FnMut(u32, Range<usize>),
) -> Result<(), BoxError> {
    let (mut at, mut piece, mut tokens) = (0, String::new(), Vec::new());
    let too_long = word.chars().nth(model.max_input_chars_per_word).is_some();
    while at < word.len() && !too_long {
        let rest = &word[at..];
        let prefix = if at > 0 { &*model.continuing_subword_prefix } else { "" };
        let most = longest.saturating_sub(prefix.len());
        let ends = rest.char_indices().map(|(start, c)| start + c.len_utf8()).take_while(|end| *end <= most);
        let ends: Vec<_> = ends.collect();
        let found = ends.into_iter().rev().find_map(|end| {
            piece.clear();
            piece.push_str(prefix);
            piece.push_str(&rest[..end]);
            model.token_to_id(&piece).map(|id| (id, end))
        });
        let Some((id, len)) = found else { break };
        tokens.push((id, at..at + len));
        at += len;
        budget.yield_if_due().await;
    }
    if at < word.len() {
        let unknown = model.token_to_id(&model.unk_token).ok_or("unk_token is not in the vocabulary")?;
        tokens = vec![(unknown, 0..word.len())];
    }
    tokens.into_iter().for_each(|(id, range)| emit(id, range));
    Ok(())
}
