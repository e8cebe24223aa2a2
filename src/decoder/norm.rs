use candle_core::{D, DType, Result, Tensor};

use super::{linear::map, spec::NormSpec};
use crate::kernels::{
    Isa,
    rows::{self, normalise},
};

/// Normalises pieces of vectors.
pub struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    /// Numbers that are normalised together.
    size: usize,
    centred: bool,
    eps: f64,
    isa: Isa,
}

impl Norm {
    /// `weight` and `bias` are as long as a piece, or as several pieces that then have their own.
    pub fn new(weight: Tensor, bias: Option<Tensor>, size: usize, spec: NormSpec) -> Self {
        Self { weight, bias, size, centred: spec.centred, eps: spec.eps, isa: Isa::detect() }
    }

    /// Normalises the pieces of each row, `[rows, pieces * size]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.in_tensors(x);
        }
        match &self.bias {
            Some(bias) => map([x, &self.weight, bias], |[x, weight, bias]| self.in_rows(x, weight, Some(bias))),
            None => map([x, &self.weight], |[x, weight]| self.in_rows(x, weight, None)),
        }
    }

    fn in_rows(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let Self { size, centred, eps, isa, .. } = *self;
        normalise(x, rows::Norm { weight, bias, size, centred, eps: eps as f32 }, isa)
    }

    fn in_tensors(&self, x: &Tensor) -> Result<Tensor> {
        let pieces = self.weight.elem_count() / self.size;
        let wide = x.to_dtype(DType::F32)?.contiguous()?.reshape(((), pieces, self.size))?;
        let wide = if self.centred { wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)? } else { wide };
        let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let weight = self.weight.to_dtype(DType::F32)?.reshape((1, pieces, self.size))?;
        let mut y = wide.broadcast_div(&scale)?.broadcast_mul(&weight)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(DType::F32)?.reshape((1, pieces, self.size))?)?;
        }
        y.reshape(x.shape())?.to_dtype(x.dtype())
    }
}
