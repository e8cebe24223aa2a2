//! Norms.

use candle_core::{Result, Tensor};

use super::ops::{NormWeights, Ops};

/// Normalizes pieces of vectors.
pub struct Norm {
    weights: NormWeights,
    ops: Ops,
}

impl Norm {
    pub fn new(weights: NormWeights, ops: &Ops) -> Self {
        Self { weights, ops: ops.clone() }
    }

    /// Normalizes the pieces of each row, `[rows, pieces * size]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.ops.normalize(x, &self.weights)
    }
}
