//! Operations by candle's tensor operations, on any device, packed over the whole batch.

mod attention;
mod attention_plan;
mod cache;
mod experts;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{
    DType, Device, Module, Result, Tensor,
    quantized::{QMatMul, QTensor},
};

pub use attention_plan::AttentionPlans;
pub use cache::TensorCache;
pub use experts::mix_experts;
pub use rows::{activate, normalize, rotate};

use crate::kernels::Isa;

/// Where tensor operations run.
#[derive(Debug, Clone)]
pub struct CandleOps {
    pub device: Device,
    /// The type of activations and of weights that are not quantized.
    pub dtype: DType,
    /// The instruction set of work on values in the memory of the CPU, such as logits.
    pub isa: Isa,
    /// Elements of scores, and of gathered keys, that attention computes at once.
    pub max_elements: usize,
}

impl CandleOps {
    /// Elements of scores that bound the memory of attention: 128 MiB in `f32`.
    const MAX_ELEMENTS: usize = 1 << 25;

    pub fn new(device: Device, dtype: DType, isa: Isa) -> Self {
        Self { device, dtype, isa, max_elements: Self::MAX_ELEMENTS }
    }
}

/// `x Wᵀ`. Quantized products take and give `f32`.
pub fn multiply_quantized(x: &Tensor, matrix: &Arc<QTensor>) -> Result<Tensor> {
    QMatMul::QTensor(matrix.clone()).forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}
