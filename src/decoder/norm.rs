use candle_core::{D, DType, Result, Tensor};

use super::{
    differentiable::{unary, with_f32},
    spec::NormSpec,
};
use crate::kernels::{
    Isa,
    elementwise::{NormKind, NormParams, normalize, normalize_gradient},
};

/// Normalizes pieces of vectors.
#[derive(Clone)]
pub struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    /// Numbers that are normalized together.
    size: usize,
    kind: NormKind,
    eps: f64,
    isa: Isa,
}

impl Norm {
    /// `weight` and `bias` are as long as a piece, or as several pieces that then have their own.
    pub fn new(weight: Tensor, bias: Option<Tensor>, size: usize, spec: NormSpec, isa: Isa) -> Self {
        Self { weight, bias, size, kind: spec.kind, eps: spec.eps, isa }
    }

    /// Normalizes the pieces of each row, `[rows, pieces * size]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.in_tensors(x);
        }
        let (this, back) = (self.clone(), self.clone());
        let forward = move |x: &[f32]| this.with_values(|norm| normalize(x, norm, this.isa));
        unary(x, x.dim(1)?, forward, move |x, gradient| {
            back.with_values(|norm| normalize_gradient(x, gradient, norm, back.isa))
        })
    }

    /// Gives what the CPU's own kernels take.
    fn with_values<R>(&self, compute: impl FnOnce(NormParams<'_>) -> R) -> Result<R> {
        with_f32(&self.weight, |weight| match &self.bias {
            Some(bias) => with_f32(bias, |bias| compute(self.of_values(weight, Some(bias)))),
            None => Ok(compute(self.of_values(weight, None))),
        })?
    }

    fn of_values<'a>(&self, weight: &'a [f32], bias: Option<&'a [f32]>) -> NormParams<'a> {
        NormParams { weight, bias, size: self.size, kind: self.kind, eps: self.eps as f32 }
    }

    fn in_tensors(&self, x: &Tensor) -> Result<Tensor> {
        let pieces = self.weight.elem_count() / self.size;
        let wide = x.to_dtype(DType::F32)?.contiguous()?.reshape(((), pieces, self.size))?;
        let wide =
            if self.kind == NormKind::LayerNorm { wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)? } else { wide };
        let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let weight = self.weight.to_dtype(DType::F32)?.reshape((1, pieces, self.size))?;
        let mut y = wide.broadcast_div(&scale)?.broadcast_mul(&weight)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(DType::F32)?.reshape((1, pieces, self.size))?)?;
        }
        y.reshape(x.shape())?.to_dtype(x.dtype())
    }
}
