use std::f64::consts::PI;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::{rope_i, rope_thd};

use super::{
    Batch,
    differentiable::{self, with_f32},
    spec::{RopeScaling, RopeSpec},
};
use crate::kernels::{
    Isa,
    elementwise::{RopeStyle, RotationAngles, rotate},
};

/// Rotary position embedding ([RoFormer](https://arxiv.org/abs/2104.09864)) of heads.
pub struct Rope {
    spec: RopeSpec,
    /// Radians a position turns each pair by, `[dims / 2]`, in sequences of usual length.
    frequencies: Vec<f32>,
    /// Multiplies queries and keys alike.
    scale: f32,
    device: Device,
    isa: Isa,
}

/// The cosines and sines of a batch's positions, `[rows, dims / 2]` each.
#[derive(Clone)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
    style: RopeStyle,
    isa: Isa,
}

impl Rope {
    pub fn new(spec: &RopeSpec, device: &Device, isa: Isa) -> Self {
        let scale = match spec.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let frequencies = frequencies(spec, 0);
        Self { spec: spec.clone(), frequencies, scale: scale as f32, device: device.clone(), isa }
    }

    /// What the rotation of a sequence depends on besides positions; see [`Forward::rope_variant`](super::Forward::rope_variant).
    pub fn rope_variant(&self, prompt_len: usize, len: usize) -> usize {
        match self.spec.scaling {
            RopeScaling::Dynamic { original_positions, .. } if prompt_len > original_positions => prompt_len,
            RopeScaling::Long { original_positions, .. } if len > original_positions => original_positions + 1,
            _ => 0,
        }
    }

    /// The rotation of a batch's tokens.
    pub fn at(&self, batch: &Batch, dtype: DType) -> Result<Rotation> {
        let shape = (batch.positions.len(), self.frequencies.len());
        let mut angles = Vec::with_capacity(shape.0 * shape.1);
        for span in &batch.spans {
            for position in &batch.positions[span.start..span.start + span.len] {
                let turned = |frequencies: &[f32], angles: &mut Vec<f32>| {
                    angles.extend(frequencies.iter().map(|frequency| *position as f32 * frequency));
                };
                match self.length(span.rope_variant, *position as usize) {
                    0 => turned(&self.frequencies, &mut angles),
                    length => turned(&frequencies(&self.spec, length), &mut angles),
                }
            }
        }
        let tensor = |of: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle) * self.scale).collect();
            Tensor::from_vec(values, shape, &self.device)?.to_dtype(dtype)
        };
        Ok(Rotation { cos: tensor(f32::cos)?, sin: tensor(f32::sin)?, style: self.spec.style, isa: self.isa })
    }

    /// The length of sequence whose frequencies turn a token; 0 if they are the usual ones.
    fn length(&self, rope_variant: usize, position: usize) -> usize {
        match self.spec.scaling {
            // What is generated beyond the original positions is turned as if it were the end of a prompt.
            RopeScaling::Dynamic { original_positions, .. } if position >= original_positions => {
                rope_variant.max(position + 1)
            }
            _ => rope_variant,
        }
    }
}

impl Rotation {
    /// Turns the heads of `x`, `[rows, heads * head_dim]`.
    pub fn apply(&self, x: &Tensor, head_dim: usize) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        if x.device().is_cpu() {
            let turn = |back: bool| {
                let Self { cos, sin, style, isa } = self.clone();
                move |x: &[f32]| {
                    let turn =
                        |cos: &[f32], sin: &[f32]| rotate(x, width, RotationAngles { head_dim, cos, sin, style }, isa);
                    with_f32(&cos, |cos| {
                        with_f32(&sin, |sin| match back {
                            false => turn(cos, sin),
                            true => turn(cos, &sin.iter().map(|sin| -sin).collect::<Vec<_>>()),
                        })
                    })?
                }
            };
            let back = turn(true);
            return differentiable::linear(x, width, turn(false), move |gradient| back(&gradient));
        }
        let dims = 2 * self.cos.dim(1)?;
        let heads = x.reshape((1, rows, width / head_dim, head_dim))?;
        let turned = heads.narrow(3, 0, dims)?.contiguous()?;
        let turned = match self.style {
            RopeStyle::NeoX => rope_thd(&turned, &self.cos, &self.sin)?,
            RopeStyle::Interleaved => {
                let turned = turned.transpose(1, 2)?.contiguous()?;
                rope_i(&turned, &self.cos, &self.sin)?.transpose(1, 2)?
            }
        };
        Tensor::cat(&[&turned, &heads.narrow(3, dims, head_dim - dims)?], 3)?.reshape((rows, width))
    }
}

/// Those of sequences of some length; 0 is any usual one.
fn frequencies(spec: &RopeSpec, length: usize) -> Vec<f32> {
    let (dims, pairs) = (spec.dims as f64, spec.dims / 2);
    let theta = match spec.scaling {
        RopeScaling::Dynamic { factor, original_positions } => {
            let length = length.max(original_positions) as f64;
            let growth = factor * length / original_positions as f64 - (factor - 1.0);
            spec.theta * growth.powf(dims / (dims - 2.0))
        }
        _ => spec.theta,
    };
    let base = |pair: usize| theta.powf(-((2 * pair) as f64) / dims);
    let scaled = |pair: usize| -> f64 {
        let frequency = base(pair);
        match &spec.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                // Turns within the original context decide between stretching and keeping.
                let turns = original_positions * frequency / (2.0 * PI);
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate, .. } => {
                let pair_of =
                    |turns: f64| dims * (original_positions / (turns * 2.0 * PI)).ln() / (2.0 * spec.theta.ln());
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dims - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let stretch = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                stretch * frequency / factor + (1.0 - stretch) * frequency
            }
            RopeScaling::Long { short, long, .. } => {
                let factors = if length == 0 { short } else { long };
                frequency / f64::from(factors[pair])
            }
            RopeScaling::Factors(factors) => frequency / f64::from(factors[pair]),
        }
    };
    (0..pairs).map(|pair| scaled(pair) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_fast_and_stretches_slow_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        };
        let spec = RopeSpec { theta: 500_000.0, dims: 128, style: RopeStyle::NeoX, scaling };
        let scaled = frequencies(&spec, 0);
        let plain = frequencies(&RopeSpec { scaling: RopeScaling::None, ..spec }, 0);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] * 8.0 / plain[63] - 1.0).abs() < 1e-6);
    }
}
