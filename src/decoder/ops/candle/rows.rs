//! Operations on each row alone: norms, rotations, activations.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{
    ops::{rms_norm, sigmoid},
    rotary_emb::{rope_i, rope_thd},
};

use crate::{
    decoder::ops::{NormWeights, Rotation},
    kernels::elementwise::{Activation, NormKind, RopeStyle},
};

pub fn normalize(x: &Tensor, norm: &NormWeights) -> Result<Tensor> {
    let pieces = norm.weight.elem_count() / norm.size;
    if norm.kind == NormKind::RmsNorm && norm.bias.is_none() && pieces == 1 {
        let rows = x.contiguous()?.reshape(((), norm.size))?;
        return rms_norm(&rows, &norm.weight, norm.eps as f32)?.reshape(x.shape());
    }
    let wide = x.to_dtype(DType::F32)?.contiguous()?.reshape(((), pieces, norm.size))?;
    let wide = match norm.kind {
        NormKind::LayerNorm => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
        NormKind::RmsNorm => wide,
    };
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + norm.eps)?.sqrt()?;
    let weight = norm.weight.to_dtype(DType::F32)?.reshape((1, pieces, norm.size))?;
    let mut y = wide.broadcast_div(&scale)?.broadcast_mul(&weight)?;
    if let Some(bias) = &norm.bias {
        y = y.broadcast_add(&bias.to_dtype(DType::F32)?.reshape((1, pieces, norm.size))?)?;
    }
    y.reshape(x.shape())?.to_dtype(x.dtype())
}

pub fn rotate(x: &Tensor, head_dim: usize, Rotation { cos, sin, style }: &Rotation) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let dims = 2 * cos.dim(1)?;
    let heads = x.reshape((1, rows, width / head_dim, head_dim))?;
    let turned = heads.narrow(3, 0, dims)?.contiguous()?;
    let turned = match style {
        RopeStyle::NeoX => rope_thd(&turned, cos, sin)?,
        RopeStyle::Interleaved => {
            rope_i(&turned.transpose(1, 2)?.contiguous()?, cos, sin)?.transpose(1, 2)?.contiguous()?
        }
    };
    let all = match dims == head_dim {
        true => turned,
        false => Tensor::cat(&[&turned, &heads.narrow(3, dims, head_dim - dims)?], 3)?,
    };
    all.reshape((rows, width))
}

pub fn activate(x: &Tensor, up: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let activated = match activation {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Relu => x.relu()?,
        Activation::ReluSquared => x.relu()?.sqr()?,
        Activation::ClampedSilu { slope, limit } => {
            let x = x.minimum(f64::from(limit))?;
            (&x * sigmoid(&(&x * f64::from(slope))?)?)?
        }
    };
    match (up, activation) {
        (Some(up), Activation::ClampedSilu { limit, .. }) => activated * (up.clamp(-limit, limit)? + 1.0)?,
        (Some(up), _) => activated * up,
        (None, _) => Ok(activated),
    }
}
