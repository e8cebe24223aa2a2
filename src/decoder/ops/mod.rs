//! The operations of a layer, on one of two engines: the kernels of this crate on the CPU, or candle's tensor
//! operations on any device. Nothing above asks which device it is.

mod candle;
mod cpu;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

pub use candle::{AttentionPlans, CandleOps, TensorCache};

use crate::{
    kernels::{
        Isa,
        attention::{AttentionScoring, CacheView, Heads},
        elementwise::{Activation, NormKind, RopeStyle},
    },
    weights::{ComputeTarget, WeightMatrix},
};

/// The engine that computes a network.
#[derive(Debug, Clone)]
pub enum Ops {
    /// The kernels of this crate, on `f32` values in memory. Differentiable; a row's bits do not depend on other rows.
    Cpu(Isa),
    /// Tensor operations. Not differentiable.
    Candle(CandleOps),
}

/// The weights of a norm.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// `[size]`, or `[pieces * size]` if each piece has its own.
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    /// Elements that are normalized together.
    pub size: usize,
    pub kind: NormKind,
    pub eps: f64,
}

/// The cosines and sines of a batch's positions, `[rows, dims / 2]` each.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
    pub style: RopeStyle,
}

/// The heads of an attention layer and how queries are scored against keys.
#[derive(Debug, Clone)]
pub struct AttentionHeads {
    pub heads: Heads,
    pub scoring: AttentionScoring<'static>,
    /// [`AttentionScoring::sinks`], one for each query head.
    pub sinks: Option<Arc<[f32]>>,
}

impl AttentionHeads {
    fn scoring(&self) -> AttentionScoring<'_> {
        AttentionScoring { sinks: self.sinks.as_deref(), ..self.scoring }
    }
}

impl Ops {
    /// The operations for a device: kernels on the CPU, tensor operations in bfloat16 on others.
    pub fn new(device: Device, isa: Isa) -> Self {
        match device.is_cpu() {
            true => Self::Cpu(isa),
            false => Self::Candle(CandleOps::new(device, DType::BF16, isa)),
        }
    }

    /// Where tensors of activations are.
    pub fn device(&self) -> &Device {
        match self {
            Self::Cpu(_) => &Device::Cpu,
            Self::Candle(ops) => &ops.device,
        }
    }

    /// The type of activations, and of weights that are not quantized.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu(_) => DType::F32,
            Self::Candle(ops) => ops.dtype,
        }
    }

    /// The form in which weights are placed for these operations.
    pub fn compute_target(&self) -> ComputeTarget {
        match self {
            Self::Cpu(isa) => ComputeTarget::Kernels(*isa),
            Self::Candle(ops) => ComputeTarget::Tensors(ops.device.clone(), ops.dtype),
        }
    }

    /// The instruction set of work on values in memory.
    pub fn isa(&self) -> Isa {
        match self {
            Self::Cpu(isa) => *isa,
            Self::Candle(ops) => ops.isa,
        }
    }

    /// Whether kernels compute: gradients pass them, they attend to whole sequences, and threads may share a batch.
    pub fn uses_kernels(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }

    /// `x Wᵀ`, `[rows, inputs]` to `[rows, outputs]`. With `rounded`, activations are rounded to bfloat16 where the
    /// weights are stored as bfloat16.
    pub fn multiply(&self, x: &Tensor, weight: &WeightMatrix, rounded: bool) -> Result<Tensor> {
        match weight {
            WeightMatrix::Panels(matrix) => cpu::multiply_panels(x, matrix, rounded, self.isa()),
            WeightMatrix::Packed(matrix) => cpu::multiply_packed(x, matrix, rounded, self.isa()),
            WeightMatrix::Dense(matrix) => x.matmul(&matrix.t()?),
            WeightMatrix::Quantized(matrix) => candle::multiply_quantized(x, matrix),
        }
    }

    /// [`multiply`](Self::multiply) to values in memory, without a copy where the kernels compute them there.
    pub fn multiply_to_vec(&self, x: &Tensor, weight: &WeightMatrix, rounded: bool) -> Result<Vec<f32>> {
        match weight {
            WeightMatrix::Panels(matrix) => cpu::panels_to_vec(x, matrix, rounded, self.isa()),
            WeightMatrix::Packed(matrix) => cpu::packed_to_vec(x, matrix, self.isa()),
            WeightMatrix::Dense(_) | WeightMatrix::Quantized(_) => {
                self.multiply(x, weight, rounded)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
            }
        }
    }

    /// The products of several matrices with one input in one go; `None` if they have to be computed one by one.
    pub fn multiply_all<const N: usize>(&self, x: &Tensor, weights: [&WeightMatrix; N]) -> Result<Option<[Tensor; N]>> {
        cpu::multiply_all(x, weights, self.isa())
    }

    /// `activation(x Gᵀ) * (x Uᵀ)` in one go; `None` if it has to be computed step by step.
    pub fn multiply_gated(
        &self,
        x: &Tensor,
        gate_and_up: [&WeightMatrix; 2],
        activation: Activation,
    ) -> Result<Option<Tensor>> {
        cpu::multiply_gated(x, gate_and_up, activation, self.isa())
    }

    /// The rows of a matrix that these indices name, `[rows]`: `[rows, columns]`.
    pub fn embed(&self, weight: &WeightMatrix, indices: &Tensor) -> Result<Tensor> {
        match weight {
            WeightMatrix::Panels(matrix) => cpu::embed(indices, |row| matrix.row(row), matrix.columns),
            WeightMatrix::Packed(matrix) => cpu::embed(indices, |row| matrix.row(row), matrix.columns),
            WeightMatrix::Dense(matrix) => matrix.index_select(indices, 0)?.to_dtype(self.dtype()),
            WeightMatrix::Quantized(matrix) => matrix.embedding(indices)?.to_dtype(self.dtype()),
        }
    }

    /// Normalizes the pieces of each row, `[rows, pieces * size]`.
    pub fn normalize(&self, x: &Tensor, norm: &NormWeights) -> Result<Tensor> {
        match self {
            Self::Cpu(isa) => cpu::normalize(x, norm, *isa),
            Self::Candle(_) => candle::normalize(x, norm),
        }
    }

    /// Rotates the first elements of each head of `x`, `[rows, heads * head_dim]`, by the positions of the rows.
    pub fn rotate(&self, x: &Tensor, head_dim: usize, rotation: &Rotation) -> Result<Tensor> {
        match self {
            Self::Cpu(isa) => cpu::rotate(x, head_dim, rotation, *isa),
            Self::Candle(_) => candle::rotate(x, head_dim, rotation),
        }
    }

    /// `activation(x)`, or `activation(x) * up`.
    pub fn activate(&self, x: &Tensor, up: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        match self {
            Self::Cpu(isa) => cpu::activate(x, up, activation, *isa),
            Self::Candle(_) => candle::activate(x, up, activation),
        }
    }

    /// `x + scale * y`.
    pub fn add(&self, x: &Tensor, y: &Tensor, scale: f32) -> Result<Tensor> {
        match self {
            Self::Cpu(isa) => cpu::add(x, y, scale, *isa),
            Self::Candle(_) if scale == 1.0 => x + y,
            Self::Candle(_) => x + (y * f64::from(scale))?,
        }
    }

    /// The sum of the experts' outputs for `x`, `[rows, hidden]`, times their weights, `[rows, experts]` in the memory
    /// of the CPU. An expert does not run on rows of weight 0. `run` gets an expert, its rows of `x`, and their
    /// indices.
    pub fn mix_experts(
        &self,
        x: &Tensor,
        weights: &Tensor,
        run: impl FnMut(usize, &Tensor, &[u32]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Cpu(_) => cpu::mix_experts(x, weights, run),
            Self::Candle(_) => candle::mix_experts(x, weights, run),
        }
    }

    /// Attends from `queries`, `[rows, num_heads * head_dim]`, to the cached keys and values of each row's own
    /// sequence, up to the row's position. Same shape back.
    pub fn attend_paged(&self, queries: &Tensor, cache: CacheView<'_>, heads: &AttentionHeads) -> Result<Tensor> {
        cpu::attend(queries, cache, heads, self.isa())
    }

    /// Attends within whole sequences of these lengths, without a cache. Differentiable.
    pub fn attend_within(&self, qkv: [&Tensor; 3], lens: &[usize], heads: &AttentionHeads) -> Result<Tensor> {
        match self {
            Self::Cpu(isa) => cpu::attend_within(qkv, lens, heads, *isa),
            Self::Candle(_) => candle_core::bail!("whole sequences are attended to by the kernels of the CPU only"),
        }
    }
}

/// The rows that each expert has a weight for, from weights by expert and row.
fn rows_of_experts(weights: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let rows =
        |weights: &Vec<f32>| (0u32..).zip(weights).filter(|(_, weight)| **weight != 0.0).map(|(row, _)| row).collect();
    weights.iter().map(rows).collect()
}
