//! Buffers that a thread attends in.

use std::cell::RefCell;

use super::{heads::BLOCK_TOKENS, kv_int8::TokenScale, softmax::PartialAttention};

/// What a thread computes in, kept for its next tiles.
#[derive(Default)]
pub struct AttentionScratch {
    /// `[rows, group, head_dim]`, times the scale.
    pub queries: Vec<f32>,
    /// Scores, then weights, `[queries, keys]`.
    pub weights: Vec<f32>,
    /// Of codes and what they are multiplied with.
    pub int8: Int8Scratch,
    pub part: PartialAttention,
    pub whole: PartialAttention,
    /// `[rows, group, head_dim]`.
    pub out: Vec<f32>,
}

impl AttentionScratch {
    pub fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static WORK: RefCell<AttentionScratch> = RefCell::default();
        }
        WORK.with_borrow_mut(work)
    }
}

/// What a thread computes in.
#[derive(Default)]
pub struct Int8Scratch {
    /// Queries, `[queries, head_dim / 2]`, or weights times the scales of values, `[queries, keys / 2]`, in steps of their own.
    pub factors: Vec<[i16; 2]>,
    /// `[queries]`.
    pub steps: Vec<f32>,
    /// Those of keys or values.
    pub scales: Vec<[TokenScale; BLOCK_TOKENS]>,
    /// Dot products, `[queries, keys]`, or values, `[queries, padded_dim]`.
    pub sums: Vec<i32>,
}
