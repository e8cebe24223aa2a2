use candle_core::{Result, Tensor};

use super::linear::map;
use crate::kernels::{Isa, rows::rms_norm};

/// Divides by the root mean square ([paper](https://arxiv.org/abs/1910.07467)).
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
    isa: Isa,
}

impl RmsNorm {
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps: eps as f32, isa: Isa::detect() }
    }

    /// Normalises each piece of `x` that is as long as the weight: `[rows, size]`, or `[rows, heads * size]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            let pieces = x.contiguous()?.reshape(((), self.weight.elem_count()))?;
            return candle_nn::ops::rms_norm(&pieces, &self.weight, self.eps)?.reshape(x.shape());
        }
        map([x, &self.weight], |[x, weight]| rms_norm(x, weight, self.eps, self.isa))
    }
}
