//! Unigram: of all ways to split a word into tokens, the one with the best sum of scores.

use std::{mem::take, ops::Range};

use tokenizers::models::unigram::Unigram;

use super::{private_field::private_field, trie::Trie};
use crate::text::{budget::TokenizeBudget, pattern::BoxError};

/// How far the score of an unknown character is below the worst token's.
const UNKNOWN_PENALTY: f64 = 10.0;
/// Characters that are handled between two looks at the budget.
const CHARACTERS_AT_A_TIME: usize = 16;
/// Tokens that are given between two looks at it.
const TOKENS_AT_A_TIME: usize = 64;

/// A Unigram model, ready to split words.
pub struct UnigramSplitter {
    trie: Trie,
    scores: Vec<f64>,
    unknown_score: f64,
    unknown_id: Option<u32>,
    /// The tokens of all bytes, where unknown characters become their bytes.
    bytes: Option<Vec<Option<u32>>>,
}

/// The best way to get to a place in a word.
#[derive(Clone, Copy)]
struct BestPath {
    score: f64,
    /// Bytes of its last token; none while no token ends here.
    len: u32,
    id: u32,
}

const NO_ID: u32 = u32::MAX;
const NO_UNKNOWN_ID: &str = "a character is in no token, and there is no unk_id";
const NO_PATH: BestPath = BestPath { score: 0.0, len: 0, id: 0 };

impl UnigramSplitter {
    pub fn new(model: &Unigram) -> Result<Self, BoxError> {
        let unknown: Option<u32> = private_field(model, "unk_id")?;
        let tokens = model.iter().zip(0..).map(|((token, _), id)| (token.as_bytes(), id)).collect();
        let trie = Trie::new(tokens);
        let byte = |byte: u8| trie.get(format!("<0x{byte:02X}>").as_bytes());
        let bytes = model.byte_fallback().then(|| (0..=u8::MAX).map(byte).collect());
        let scores = model.iter().map(|(_, score)| *score).collect();
        Ok(Self { trie, scores, unknown_score: model.min_score - UNKNOWN_PENALTY, unknown_id: unknown, bytes })
    }

    /// Gives the tokens of a word to `emit`, exactly as the tokenizers crate makes them.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work; tokens of this word may have been given by then.
    pub async fn tokenize(
        &self,
        word: &str,
        budget: &mut TokenizeBudget,
        emit: impl FnMut(u32, Range<usize>),
    ) -> Result<(), BoxError> {
        let mut lattice =
            Lattice { model: self, word, paths: vec![NO_PATH], settled: 0, best: Vec::new(), unknown: 0..0, emit };
        for (i, (start, c)) in word.char_indices().enumerate() {
            if i.is_multiple_of(CHARACTERS_AT_A_TIME) {
                budget.yield_if_due().await;
            }
            if lattice.is_settled_at(start) {
                lattice.settle(budget).await?;
            }
            lattice.extend(start, c.len_utf8())?;
        }
        lattice.settle(budget).await?;
        lattice.emit_unknown()
    }
}

/// The ways through a word, from the last place on that all of them go through.
struct Lattice<'a, E> {
    model: &'a UnigramSplitter,
    word: &'a str,
    /// The best paths to the places from `settled` on.
    paths: Vec<BestPath>,
    settled: usize,
    /// The tokens of the best path, last one first.
    best: Vec<(u32, Range<usize>)>,
    /// Unknown characters that more may follow: neighbors are one token.
    unknown: Range<usize>,
    emit: E,
}

impl<E: FnMut(u32, Range<usize>)> Lattice<'_, E> {
    /// Whether no token reaches across a place.
    fn is_settled_at(&self, at: usize) -> bool {
        at > self.settled && self.settled + self.paths.len() == at + 1
    }

    /// Finds the paths that go on from a place with one token.
    fn extend(&mut self, start: usize, char_len: usize) -> Result<(), BoxError> {
        let Self { model, paths, .. } = self;
        let at = start - self.settled;
        let begun = paths[at].score;
        let mut is_token = false;
        let mut go_on = |len: usize, id: u32, score: f64| {
            if paths.len() <= at + len {
                paths.resize(at + len + 1, NO_PATH);
            }
            let path = &mut paths[at + len];
            let score = score + begun;
            if path.len == 0 || score > path.score {
                *path = BestPath { score, len: len as u32, id };
            }
        };
        for (len, id) in model.trie.at_start_of(&self.word.as_bytes()[start..]) {
            go_on(len, id, model.scores[id as usize]);
            is_token |= len == char_len;
        }
        if !is_token {
            go_on(char_len, model.unknown_id.unwrap_or(NO_ID), model.unknown_score);
            if paths[at + char_len].id == NO_ID {
                return Err(NO_UNKNOWN_ID.into());
            }
        }
        Ok(())
    }

    /// Gives the tokens of the best path to the last place, and goes on from there.
    async fn settle(&mut self, budget: &mut TokenizeBudget) -> Result<(), BoxError> {
        let (from, end) = (self.settled, self.settled + self.paths.len() - 1);
        let mut at = end;
        while at > from {
            let BestPath { len, id, .. } = self.paths[at - from];
            let start = at.checked_sub(len as usize).filter(|start| len > 0 && *start >= from);
            let start = start.ok_or("a token ends inside a character")?;
            self.best.push((id, start..at));
            at = start;
            if self.best.len().is_multiple_of(TOKENS_AT_A_TIME) {
                budget.yield_if_due().await;
            }
        }
        while let Some((id, range)) = self.best.pop() {
            if Some(id) == self.model.unknown_id {
                let start = if self.unknown.is_empty() { range.start } else { self.unknown.start };
                self.unknown = start..range.end;
            } else {
                self.emit_unknown()?;
                (self.emit)(id, range);
            }
            if self.best.len().is_multiple_of(TOKENS_AT_A_TIME) {
                budget.yield_if_due().await;
            }
        }
        let last = self.paths.pop().unwrap_or(NO_PATH);
        self.paths.clear();
        self.paths.push(BestPath { len: 0, ..last });
        self.settled = end;
        Ok(())
    }

    /// Emits unknown characters: as a token after all, as their bytes, or as the unknown token.
    fn emit_unknown(&mut self) -> Result<(), BoxError> {
        let run = take(&mut self.unknown);
        if run.is_empty() {
            return Ok(());
        }
        let UnigramSplitter { trie, bytes, unknown_id, .. } = self.model;
        let text = &self.word.as_bytes()[run.clone()];
        let byte_tokens = || text.iter().map(|byte| bytes.as_ref()?[usize::from(*byte)]).collect::<Option<Vec<_>>>();
        if let Some(id) = trie.get(text) {
            (self.emit)(id, run);
        } else if let Some(ids) = byte_tokens() {
            ids.into_iter().for_each(|id| (self.emit)(id, run.clone()));
        } else {
            (self.emit)(unknown_id.ok_or(NO_UNKNOWN_ID)?, run);
        }
        Ok(())
    }
}
