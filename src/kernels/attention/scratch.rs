//! Buffers that a thread attends in.

use std::cell::RefCell;

use super::{heads::BLOCK_TOKENS, kv_int8::TokenScale, softmax::PartialAttention};

/// Buffers of a thread, kept for its next tiles.
#[derive(Default)]
pub struct AttentionScratch {
    /// Queries times the scale, `[rows, group, head_dim]`.
    pub queries: Vec<f32>,
    /// Scores, then weights, `[queries, keys]`.
    pub weights: Vec<f32>,
    /// For keys and values of 8 bits.
    pub int8: Int8Scratch,
    /// The current part of the keys.
    pub part: PartialAttention,
    /// All parts so far.
    pub whole: PartialAttention,
    /// The result, `[rows, group, head_dim]`.
    pub out: Vec<f32>,
}

impl AttentionScratch {
    /// Lends the buffers of this thread.
    pub fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static WORK: RefCell<AttentionScratch> = RefCell::default();
        }
        WORK.with_borrow_mut(work)
    }
}

/// Buffers for keys and values of 8 bits.
#[derive(Default)]
pub struct Int8Scratch {
    /// Queries, `[queries, head_dim / 2]`, or weights times the scales of values, `[queries, keys / 2]`, rounded to 16
    /// bits.
    pub factors: Vec<[i16; 2]>,
    /// The rounding steps, `[queries]`.
    pub steps: Vec<f32>,
    /// The scales of keys or values.
    pub scales: Vec<[TokenScale; BLOCK_TOKENS]>,
    /// Dot products, `[queries, keys]`, or values, `[queries, padded_dim]`.
    pub sums: Vec<i32>,
}
