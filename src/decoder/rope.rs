//! Rotary position embeddings and their scalings.

use std::f64::consts::PI;

use candle_core::{Result, Tensor};

use super::{
    Batch,
    ops::{Ops, Rotation},
    spec::{RopeScaling, RopeSpec},
};

/// Rotary position embedding ([RoFormer](https://arxiv.org/abs/2104.09864)) of heads.
pub struct Rope {
    spec: RopeSpec,
    /// Radians per position of each pair, `[dims / 2]`, in sequences of usual length.
    frequencies: Vec<f32>,
    /// Multiplies queries and keys alike.
    scale: f32,
    ops: Ops,
}

/// The rotation of a batch's positions.
pub struct RopeRotation {
    rotation: Rotation,
    ops: Ops,
}

impl Rope {
    pub fn new(spec: &RopeSpec, ops: &Ops) -> Self {
        let scale = match spec.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let frequencies = frequencies(spec, 0);
        Self { spec: spec.clone(), frequencies, scale: scale as f32, ops: ops.clone() }
    }

    /// Distinguishes rotations of a position by the length of its sequence; see
    /// [`Forward::rope_variant`](super::Forward::rope_variant).
    pub fn rope_variant(&self, prompt_len: usize, len: usize) -> usize {
        match self.spec.scaling {
            RopeScaling::Dynamic { original_positions, .. } if prompt_len > original_positions => prompt_len,
            RopeScaling::Long { original_positions, .. } if len > original_positions => original_positions + 1,
            _ => 0,
        }
    }

    /// The rotation of a batch's tokens.
    pub fn at(&self, batch: &Batch) -> Result<RopeRotation> {
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
            Tensor::from_vec(values, shape, self.ops.device())?.to_dtype(self.ops.dtype())
        };
        let rotation = Rotation { cos: tensor(f32::cos)?, sin: tensor(f32::sin)?, style: self.spec.style };
        Ok(RopeRotation { rotation, ops: self.ops.clone() })
    }

    /// The length of sequence whose frequencies turn a token; 0 if they are the usual ones.
    fn length(&self, rope_variant: usize, position: usize) -> usize {
        match self.spec.scaling {
            // Tokens generated beyond the original positions are rotated as if they ended a prompt.
            RopeScaling::Dynamic { original_positions, .. } if position >= original_positions => {
                rope_variant.max(position + 1)
            }
            _ => rope_variant,
        }
    }
}

impl RopeRotation {
    /// Rotates the heads of `x`, `[rows, heads * head_dim]`.
    pub fn apply(&self, x: &Tensor, head_dim: usize) -> Result<Tensor> {
        self.ops.rotate(x, head_dim, &self.rotation)
    }
}

/// The frequencies of sequences of some length; 0 stands for any usual length.
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
    use crate::kernels::elementwise::RopeStyle;

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
