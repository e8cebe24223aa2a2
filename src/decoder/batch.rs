use std::{ops::Range, sync::Arc};

use super::Adapter;

/// The tokens of one forward pass: pieces of many sequences side by side, without padding.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub tokens: Vec<u32>,
    /// The position of each token in its sequence, `[rows]`.
    pub positions: Vec<u32>,
    /// The sequences, in the order of their rows.
    pub spans: Vec<Span>,
    /// The rows whose logits are wanted.
    pub sampled: Vec<u32>,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Some of its rows, of which none is sampled.
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
        Self { tokens: tokens.into(), positions: positions.into(), spans: spans.collect(), sampled: Vec::new() }
    }
}

/// The rows of one sequence in a [`Batch`].
#[derive(Debug, Clone)]
pub struct Span {
    /// The first row.
    pub start: usize,
    /// Rows of this sequence; its last `len` tokens so far.
    pub len: usize,
    /// Tokens of the sequence that are cached once this pass is done; `len` of them are new.
    pub context_len: usize,
    /// How its positions are encoded: see [`Forward::regime`](super::Forward::regime).
    pub regime: usize,
    /// The cache blocks that hold the sequence, in order.
    pub blocks: Vec<u32>,
    /// What changes the model for it.
    pub adapter: Option<Arc<Adapter>>,
}

impl Span {
    /// The cache slot of the token at `position`.
    pub fn slot(&self, position: usize, block_tokens: usize) -> usize {
        self.blocks[position / block_tokens] as usize * block_tokens + position % block_tokens
    }
}
