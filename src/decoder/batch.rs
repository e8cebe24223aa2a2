//! The rows of one forward pass.

use std::{ops::Range, sync::Arc};

use crate::{
    adapters::{AdaptedRows, LoraAdapter},
    kernels::attention::{BLOCK_TOKENS, PagedSequence},
};

/// The tokens of one forward pass: pieces of many sequences side by side, without padding.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub tokens: Vec<u32>,
    /// The position of each token in its sequence, `[rows]`.
    pub positions: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub spans: Vec<Span>,
    /// The rows whose outputs are wanted, ascending.
    pub sampled: Vec<u32>,
    /// The rows of `sampled` whose hidden state is wanted in place of logits, ascending.
    pub hidden: Vec<u32>,
}

/// The outputs of a forward pass, row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outputs {
    /// `[rows, vocab_size]`
    pub logits: Vec<f32>,
    /// Inputs of the head, after the final norm: `[rows, hidden_size]`
    pub hidden: Vec<f32>,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Its sequences with their blocks of the cache.
    pub fn sequences(&self) -> Vec<PagedSequence<'_>> {
        let spans = self.spans.iter();
        spans
            .map(|span| PagedSequence { rows: span.len, context_len: span.context_len, blocks: &span.blocks })
            .collect()
    }

    /// Its rows that adapters change.
    pub fn adapted_rows(&self) -> AdaptedRows<'_> {
        let rows = |span: &Span| span.start as u32..(span.start + span.len) as u32;
        AdaptedRows::of(self.spans.iter().map(|span| (span.adapter.as_deref(), rows(span))))
    }

    /// Some of its rows.
    pub fn part(&self, rows: Range<usize>) -> Self {
        let spans = self.spans.iter().filter_map(|span| {
            let (start, end) = (span.start.max(rows.start), (span.start + span.len).min(rows.end));
            let later = (span.start + span.len).saturating_sub(end);
            let (len, context_len) = (end - start, span.context_len.saturating_sub(later));
            let states = || span.states.part(context_len - len..context_len, start == span.start);
            let part = || Span { start: start - rows.start, len, context_len, states: states(), ..span.clone() };
            (start < end).then(part)
        });
        let (tokens, positions) = (&self.tokens[rows.clone()], &self.positions[rows.clone()]);
        let sampled = self.sampled.iter().filter(|row| rows.contains(&(**row as usize)));
        Self {
            tokens: tokens.into(),
            positions: positions.into(),
            spans: spans.collect(),
            sampled: sampled.map(|row| row - rows.start as u32).collect(),
            // Only the head of the whole batch asks for it.
            hidden: Vec::new(),
        }
    }

    /// The first row from `row` on that does not share a block of the cache with the row before it.
    pub fn end_of_block(&self, row: usize) -> usize {
        let within = |span: &&Span| span.start < row && row < span.start + span.len;
        let Some(span) = self.spans.iter().find(within) else { return row };
        let position = self.positions[row] as usize;
        (row + position.next_multiple_of(BLOCK_TOKENS) - position).min(span.start + span.len)
    }

    /// The rows that are sampled alone.
    pub fn of_sampled(&self) -> Self {
        let mut picked = Self::default();
        for row in &self.sampled {
            let one = self.part(*row as usize..*row as usize + 1);
            picked.tokens.extend(one.tokens);
            picked.positions.extend(one.positions);
            picked.spans.extend(one.spans.into_iter().map(|span| Span { start: picked.sampled.len(), ..span }));
            picked.sampled.push(picked.sampled.len() as u32);
        }
        picked
    }
}

/// The rows of one sequence in a [`Batch`].
#[derive(Debug, Clone, Default)]
pub struct Span {
    /// The identity of the sequence in the decoder; 0 if there is only this batch.
    pub sequence: u64,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// The first row.
    pub start: usize,
    /// Rows of this sequence; its last `len` tokens so far.
    pub len: usize,
    /// Tokens of the sequence that are cached once this pass is done; `len` of them are new.
    pub context_len: usize,
    /// The variant of the rotary embedding: see [`Forward::rope_variant`](super::Forward::rope_variant).
    pub rope_variant: usize,
    /// The cache blocks that hold the sequence, in order.
    pub blocks: Vec<u32>,
    /// Slots of its recurrent state.
    pub states: SpanStates,
    /// The adapter that changes the model for it.
    pub adapter: Option<Arc<LoraAdapter>>,
}

impl Span {
    /// The cache slot of the token at `position`.
    pub fn slot(&self, position: usize, block_tokens: usize) -> usize {
        self.blocks[position / block_tokens] as usize * block_tokens + position % block_tokens
    }
}

/// Slots of the recurrent state of a [`Span`]; none in a model without recurrent layers, or without a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpanStates {
    /// The state before the first row; `None`: zeros, since the sequence begins there.
    pub from: Option<u32>,
    /// States to save, in the order of their tokens. The last one is the state after all rows: its slot is the
    /// sequence's own, may be the one in `from`, and serves as working memory.
    pub saves: Vec<StateSave>,
}

/// A state to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateSave {
    /// Tokens of the sequence that the state has seen.
    pub tokens: usize,
    pub slot: u32,
}

impl SpanStates {
    /// Saves the state after `tokens` tokens in another slot than the sequence's own.
    pub fn save(&mut self, tokens: usize, slot: u32) {
        let others = &self.saves[..self.saves.len().saturating_sub(1)];
        let at = others.partition_point(|save| save.tokens <= tokens);
        self.saves.insert(at, StateSave { tokens, slot });
    }

    /// States of the rows that take the sequence from `tokens.start` tokens to `tokens.end`.
    fn part(&self, tokens: Range<usize>, is_first: bool) -> Self {
        let Some(own) = self.saves.last() else { return Self::default() };
        let within = self.saves.iter().filter(|save| tokens.start < save.tokens && save.tokens <= tokens.end);
        let mut saves: Vec<_> = within.copied().collect();
        if tokens.end < own.tokens {
            saves.push(StateSave { tokens: tokens.end, slot: own.slot });
        }
        Self { from: if is_first { self.from } else { Some(own.slot) }, saves }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_goes_on_from_the_state_that_the_part_before_leaves() {
        let save = |tokens, slot| StateSave { tokens, slot };
        let states = SpanStates { from: Some(7), saves: vec![save(16, 1), save(40, 2), save(40, 3)] };
        let span = Span { len: 30, context_len: 40, states: states.clone(), ..Span::default() };
        let tokens: Vec<u32> = (10..40).collect();
        let batch =
            Batch { positions: tokens.clone(), tokens, spans: vec![span], sampled: vec![29], ..Batch::default() };
        let part = |rows| batch.part(rows).spans.remove(0).states;
        assert_eq!(part(0..30), states);
        assert_eq!(part(0..6), SpanStates { from: Some(7), saves: vec![save(16, 1), save(16, 3)] });
        assert_eq!(part(6..20), SpanStates { from: Some(3), saves: vec![save(30, 3)] });
        assert_eq!(part(20..30), SpanStates { from: Some(3), saves: vec![save(40, 2), save(40, 3)] });
    }
}
