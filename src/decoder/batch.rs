use std::{ops::Range, sync::Arc};

use super::LoraAdapter;
use crate::kernels::attention::{BLOCK_TOKENS, PagedSequence};

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
    /// What the head would take, after the final norm: `[rows, hidden_size]`
    pub hidden: Vec<f32>,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// What its sequences hold in a cache.
    pub fn sequences(&self) -> Vec<PagedSequence<'_>> {
        let spans = self.spans.iter();
        spans
            .map(|span| PagedSequence { rows: span.len, context_len: span.context_len, blocks: &span.blocks })
            .collect()
    }

    /// Some of its rows.
    pub fn part(&self, rows: Range<usize>) -> Self {
        let spans = self.spans.iter().filter_map(|span| {
            let (start, end) = (span.start.max(rows.start), (span.start + span.len).min(rows.end));
            let later = (span.start + span.len).saturating_sub(end);
            let part = || Span {
                start: start - rows.start,
                len: end - start,
                context_len: span.context_len - later,
                ..span.clone()
            };
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
    /// Names the sequence among all that a decoder computes; 0 if there is only this batch.
    pub sequence: u64,
    /// Its tokens that were not sampled.
    pub prompt_len: usize,
    /// The first row.
    pub start: usize,
    /// Rows of this sequence; its last `len` tokens so far.
    pub len: usize,
    /// Tokens of the sequence that are cached once this pass is done; `len` of them are new.
    pub context_len: usize,
    /// How its positions are encoded: see [`Forward::rope_variant`](super::Forward::rope_variant).
    pub rope_variant: usize,
    /// The cache blocks that hold the sequence, in order.
    pub blocks: Vec<u32>,
    /// What changes the model for it.
    pub adapter: Option<Arc<LoraAdapter>>,
}

impl Span {
    /// The cache slot of the token at `position`.
    pub fn slot(&self, position: usize, block_tokens: usize) -> usize {
        self.blocks[position / block_tokens] as usize * block_tokens + position % block_tokens
    }
}
