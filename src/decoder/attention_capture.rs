//! Capture of attention to whole sequences, for inspection.

use std::{
    mem::take,
    sync::{Mutex, PoisonError},
};

use candle_core::{D, Result, Tensor};

use super::ops::AttentionHeads;
use crate::kernels::attention::{Heads, slope};

/// Records the attention of a layer.
pub struct AttentionCapture {
    /// Whether weights are recorded, too.
    pub weights: bool,
    seen: Mutex<Option<CapturedAttention>>,
}

/// Values by heads, `[heads][rows * head_dim]`, and weights, `[heads][rows * rows]`, if they are wanted.
#[derive(Default)]
pub struct CapturedAttention {
    pub queries: Vec<Vec<f32>>,
    pub keys: Vec<Vec<f32>>,
    pub weights: Option<Vec<Vec<f32>>>,
}

impl AttentionCapture {
    pub fn new(weights: bool) -> Self {
        Self { weights, seen: Mutex::default() }
    }

    /// Takes the attention of one whole sequence, of queries and keys `[rows, heads * head_dim]`.
    pub fn note(&self, queries: &Tensor, keys: &Tensor, attention: &AttentionHeads) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = attention.heads;
        let len = queries.dim(0)?;
        let by_head = |x: &Tensor, heads| x.reshape((len, heads, head_dim))?.transpose(0, 1)?.contiguous();
        let (queries, keys) = (by_head(queries, num_heads)?, by_head(keys, num_kv_heads)?);
        let weights = self.weights.then(|| {
            let shared = (num_kv_heads, num_heads / num_kv_heads, len, head_dim);
            let keys = keys.unsqueeze(1)?.broadcast_as(shared)?.reshape((num_heads, len, head_dim))?;
            weights(&queries, &keys, attention)
        });
        let values = |x: &Tensor| -> Result<Vec<Vec<f32>>> { x.flatten_from(1)?.to_vec2() };
        let weights = weights.transpose()?.map(|weights| values(&weights)).transpose()?;
        let seen = CapturedAttention { queries: values(&queries)?, keys: values(&keys)?, weights };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(())
    }

    /// The attention of the layer that ran last, if it has one.
    pub fn take(&self) -> Option<CapturedAttention> {
        take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The share of its attention that each query, `[num_heads, rows, head_dim]`, gives to each key of the same shape:
/// `[num_heads, rows, rows]`.
fn weights(queries: &Tensor, keys: &Tensor, attention: &AttentionHeads) -> Result<Tensor> {
    let AttentionHeads { heads: Heads { num_heads, .. }, scoring, sinks } = attention;
    let (num_heads, len) = (*num_heads, queries.dim(1)?);
    let mut scores = (queries.matmul(&keys.t()?)? * f64::from(scoring.scale))?;
    if let Some(alibi) = scoring.alibi {
        // A term that all keys of a row share makes no difference.
        let biases = (0..num_heads).flat_map(|head| {
            let slope = alibi * slope(head, num_heads);
            (0..len).map(move |key| slope * key as f32)
        });
        let biases = Tensor::from_iter(biases, queries.device())?.reshape((num_heads, 1, len))?;
        scores = scores.broadcast_add(&biases.to_dtype(scores.dtype())?)?;
    }
    if let Some(cap) = scoring.softcap.map(f64::from) {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let mask = (0..len).flat_map(|row| {
        let seen = (row + 1).saturating_sub(scoring.window.unwrap_or(usize::MAX))..row + 1;
        (0..len).map(move |key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY })
    });
    let mask = Tensor::from_iter(mask, queries.device())?.reshape((1, len, len))?;
    let mut scores = scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?;
    if let Some(sinks) = sinks {
        let sinks = Tensor::new(&**sinks, queries.device())?.to_dtype(scores.dtype())?;
        let sinks = sinks.reshape((num_heads, 1, 1))?.broadcast_as((num_heads, len, 1))?;
        scores = Tensor::cat(&[&scores, &sinks], 2)?;
    }
    candle_nn::ops::softmax(&scores, D::Minus1)?.narrow(2, 0, len)?.contiguous()
}
