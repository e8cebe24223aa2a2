use std::f64::consts::PI;

use candle_core::{Device, Result, Tensor};
use candle_nn::rotary_emb::rope_thd;

use super::{
    linear::map,
    spec::{RopeScaling, RopeSpec},
};
use crate::kernels::{Isa, rows::rotate};

/// Rotary position embedding ([RoFormer](https://arxiv.org/abs/2104.09864)) of whole heads, the
/// first half of a head paired with the second.
pub struct Rope {
    /// Radians a position turns each pair by, `[head_dim / 2]`.
    frequencies: Vec<f32>,
    /// Multiplies queries and keys alike.
    scale: f32,
    device: Device,
    isa: Isa,
}

/// The cosines and sines of a batch's positions, `[rows, head_dim / 2]` each.
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
    isa: Isa,
}

impl Rope {
    pub fn new(spec: &RopeSpec, head_dim: usize, device: &Device) -> Self {
        let frequencies = frequencies(spec, head_dim);
        let scale = match spec.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        Self { frequencies, scale, device: device.clone(), isa: Isa::detect() }
    }

    /// The rotation of tokens at these positions.
    pub fn at(&self, positions: &[u32], dtype: candle_core::DType) -> Result<Rotation> {
        let shape = (positions.len(), self.frequencies.len());
        let angles = || positions.iter().flat_map(|p| self.frequencies.iter().map(move |f| *p as f32 * f));
        let cos: Vec<f32> = angles().map(|angle| angle.cos() * self.scale).collect();
        let sin: Vec<f32> = angles().map(|angle| angle.sin() * self.scale).collect();
        Ok(Rotation {
            cos: Tensor::from_vec(cos, shape, &self.device)?.to_dtype(dtype)?,
            sin: Tensor::from_vec(sin, shape, &self.device)?.to_dtype(dtype)?,
            isa: self.isa,
        })
    }
}

impl Rotation {
    /// Turns `x`, `[rows, heads * head_dim]`.
    pub fn apply(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let head_dim = width / heads;
        if !x.device().is_cpu() {
            let x = x.reshape((1, rows, heads, head_dim))?;
            return rope_thd(&x, &self.cos, &self.sin)?.reshape((rows, width));
        }
        map([x, &self.cos, &self.sin], |[x, cos, sin]| rotate(x, heads, head_dim, (cos, sin), self.isa))
    }
}

fn frequencies(spec: &RopeSpec, head_dim: usize) -> Vec<f32> {
    let pairs = head_dim / 2;
    let base = |pair: usize| spec.theta.powf(-((2 * pair) as f64) / head_dim as f64);
    let scaled = |pair: usize| -> f64 {
        let frequency = base(pair);
        match &spec.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                // Turns within the original context decide between stretching and keeping.
                let turns = original_positions * frequency / (2.0 * PI);
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate, .. } => {
                let pair_of = |turns: f64| {
                    head_dim as f64 * (original_positions / (turns * 2.0 * PI)).ln() / (2.0 * spec.theta.ln())
                };
                let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min((head_dim - 1) as f64));
                let width = if low == high { 0.001 } else { high - low };
                let stretch = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                stretch * frequency / factor + (1.0 - stretch) * frequency
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
        let scaled = frequencies(&RopeSpec { theta: 500_000.0, scaling }, 128);
        let plain = frequencies(&RopeSpec { theta: 500_000.0, scaling: RopeScaling::None }, 128);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] * 8.0 / plain[63] - 1.0).abs() < 1e-6);
    }
}
