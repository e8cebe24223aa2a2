use std::{
    mem::take,
    sync::{Mutex, PoisonError},
};

use candle_core::{Result, Tensor};

/// Sees what attention computes in a layer.
pub struct AttentionCapture {
    /// Whether it wants the weights, too.
    pub weights: bool,
    seen: Mutex<Option<CapturedAttention>>,
}

/// Numbers by heads, `[heads][rows * head_dim]`, and weights, `[heads][rows * rows]`, if they are wanted.
pub struct CapturedAttention {
    pub queries: Vec<Vec<f32>>,
    pub keys: Vec<Vec<f32>>,
    pub weights: Option<Vec<Vec<f32>>>,
}

impl AttentionCapture {
    pub fn new(weights: bool) -> Self {
        Self { weights, seen: Mutex::default() }
    }

    /// All of shape `[heads, rows, values]`.
    pub fn note(&self, queries: &Tensor, keys: &Tensor, weights: Option<&Tensor>) -> Result<()> {
        let by_head = |x: &Tensor| -> Result<Vec<Vec<f32>>> { x.flatten_from(1)?.to_vec2() };
        let weights = weights.map(by_head).transpose()?;
        let seen = CapturedAttention { queries: by_head(queries)?, keys: by_head(keys)?, weights };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(())
    }

    /// What the last layer computed.
    pub fn take(&self) -> Result<CapturedAttention> {
        let seen = take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        seen.ok_or_else(|| candle_core::Error::Msg("a layer had no attention".into()))
    }
}
