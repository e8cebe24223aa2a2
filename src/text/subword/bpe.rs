//! Byte pair encoding of long words, in time n log n.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

use tokenizers::{
    Model as _,
    models::bpe::{BPE, MergeMap},
};

use super::private_field::private_field;
use crate::text::{budget::TokenizeBudget, pattern::BoxError};

/// Symbols that are handled between two looks at the budget.
const SYMBOLS_AT_A_TIME: usize = 64;
/// No symbol, in a list of them.
const NONE: u32 = u32::MAX;

/// The merges of a model by the ids of both tokens: rank, and the id of the token they become. The tokenizers crate
/// keeps its own to itself.
///
/// # Errors
/// A vocabulary in which tokens share an id.
pub async fn merges(bpe: &BPE, budget: &mut TokenizeBudget) -> Result<MergeMap, BoxError> {
    let pairs: Vec<(String, String)> = private_field(bpe, "merges")?;
    let prefix_len = bpe.continuing_subword_prefix.as_ref().map_or(0, String::len);
    let id = |token: &str| bpe.token_to_id(token).ok_or("two tokens have one id");
    let (mut merges, mut merged) = (MergeMap::with_capacity(pairs.len()), String::new());
    for ((left, right), rank) in pairs.iter().zip(0..) {
        budget.yield_if_due().await;
        merged.clear();
        merged += left;
        merged += right.get(prefix_len..).unwrap_or_default();
        merges.insert((id(left)?, id(right)?), (rank, id(&merged)?));
    }
    Ok(merges)
}

/// Gives the tokens of a word to `emit`, exactly as the tokenizers crate makes them.
///
/// # Cancel safety
/// Dropping the future ends the work; tokens of this word may have been given by then.
pub async fn tokenize(
    bpe: &BPE,
    merges: &MergeMap,
    word: &str,
    budget: &mut TokenizeBudget,
    mut emit: impl FnMut(u32, Range<usize>),
) -> Result<(), BoxError> {
    if bpe.ignore_merges
        && let Some(id) = bpe.token_to_id(word)
    {
        emit(id, 0..word.len());
        return Ok(());
    }
    let mut symbols = symbols(bpe, word, budget).await?;
    merge(&mut symbols, merges, budget).await;
    let mut start = 0;
    for chunk in symbols.chunks(SYMBOLS_AT_A_TIME) {
        for symbol in chunk.iter().filter(|symbol| symbol.len > 0) {
            let end = start + symbol.len as usize;
            emit(symbol.id, start..end);
            start = end;
        }
        budget.yield_if_due().await;
    }
    Ok(())
}

/// A part of a word, in a doubly linked list.
struct Symbol {
    id: u32,
    /// Bytes of the word; none once it is part of the symbol before it.
    len: u32,
    previous: u32,
    next: u32,
}

/// The symbols of a word before any merge: its characters, or the bytes of unknown ones.
async fn symbols(bpe: &BPE, word: &str, budget: &mut TokenizeBudget) -> Result<Vec<Symbol>, BoxError> {
    if u32::try_from(word.len()).is_err() {
        return Err("a word has more than 4 GB".into());
    }
    let mut symbols = Vec::new();
    let mut add = |id: u32, len: usize| {
        let at = symbols.len() as u32;
        symbols.push(Symbol { id, len: len as u32, previous: at.wrapping_sub(1), next: at + 1 });
    };
    // Characters that are no tokens, which may be fused with more of them.
    let mut unknown: Option<(u32, usize)> = None;
    let mut name = String::new();
    for (i, (start, c)) in word.char_indices().enumerate() {
        if i.is_multiple_of(SYMBOLS_AT_A_TIME) {
            budget.yield_if_due().await;
        }
        let end = start + c.len_utf8();
        name.clear();
        name += bpe.continuing_subword_prefix.as_deref().filter(|_| start > 0).unwrap_or_default();
        name.push(c);
        name += bpe.end_of_word_suffix.as_deref().filter(|_| end == word.len()).unwrap_or_default();
        if let Some(id) = bpe.token_to_id(&name) {
            if let Some((id, len)) = unknown.take() {
                add(id, len);
            }
            add(id, c.len_utf8());
        } else if let Some(bytes) = byte_tokens(bpe, &name) {
            // Unknown characters before them come after them: so it is in the crate.
            bytes.into_iter().for_each(|id| add(id, 1));
        } else if let Some(token) = &bpe.unk_token {
            let id = bpe.token_to_id(token).ok_or_else(|| format!("unk_token {token:?} is not in the vocabulary"))?;
            unknown = Some(match unknown.take() {
                Some((id, len)) if bpe.fuse_unk => (id, len + c.len_utf8()),
                before => {
                    if let Some((id, len)) = before {
                        add(id, len);
                    }
                    (id, c.len_utf8())
                }
            });
        }
    }
    if let Some((id, len)) = unknown {
        add(id, len);
    }
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    Ok(symbols)
}

/// The tokens of a character's bytes, if there are such tokens and the model falls back on them.
fn byte_tokens(bpe: &BPE, character: &str) -> Option<Vec<u32>> {
    let token = |byte: u8| bpe.token_to_id(&format!("<0x{byte:02X}>"));
    if bpe.byte_fallback { character.bytes().map(token).collect() } else { None }
}

/// Two neighbors that may be merged: by rank, then by the place of the left one.
type MergeCandidate = Reverse<(u32, u32, u32)>;

/// Merges neighbors for as long as any can be, the pair of the lowest rank first.
async fn merge(symbols: &mut [Symbol], merges: &MergeMap, budget: &mut TokenizeBudget) {
    let mut queue = BinaryHeap::<MergeCandidate>::new();
    let candidate = |left: &Symbol, right: &Symbol, at: u32| {
        merges.get(&(left.id, right.id)).map(|(rank, id)| Reverse((*rank, at, *id)))
    };
    for (at, pair) in (0..).zip(symbols.windows(2)) {
        queue.extend(candidate(&pair[0], &pair[1], at));
        if (at as usize).is_multiple_of(SYMBOLS_AT_A_TIME) {
            budget.yield_if_due().await;
        }
    }
    let mut merged = 0usize;
    while let Some(Reverse((_, at, id))) = queue.pop() {
        merged += 1;
        if merged.is_multiple_of(SYMBOLS_AT_A_TIME) {
            budget.yield_if_due().await;
        }
        let left = &symbols[at as usize];
        if left.len == 0 || left.next == NONE {
            continue;
        }
        let (right_at, previous) = (left.next, left.previous);
        let right = &symbols[right_at as usize];
        // A candidate that has waited may be of symbols that there are no more.
        if merges.get(&(left.id, right.id)).is_none_or(|(_, new)| *new != id) {
            continue;
        }
        let (len, next) = (left.len + right.len, right.next);
        symbols[right_at as usize].len = 0;
        symbols[at as usize] = Symbol { id, len, previous, next };
        if next != NONE {
            symbols[next as usize].previous = at;
            queue.extend(candidate(&symbols[at as usize], &symbols[next as usize], at));
        }
        if previous != NONE {
            queue.extend(candidate(&symbols[previous as usize], &symbols[at as usize], previous));
        }
    }
}
