use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Module, Result, Shape, Tensor, quantized::QMatMul};

use crate::{
    kernels::{Isa, quantized::QuantMatrix},
    weights::Matrix,
};

/// `y = x Wᵀ + b` with a dense or quantised `W`, `[outputs, inputs]`.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    bytes: usize,
}

enum Weight {
    Dense(Tensor),
    Packed(PackedProduct),
    Quantized(QMatMul),
}

impl Linear {
    pub fn new(matrix: Matrix, bias: Option<Tensor>) -> Result<Self> {
        let bytes = matrix.bytes();
        let weight = match matrix {
            Matrix::Dense(tensor) => Weight::Dense(tensor.t()?),
            Matrix::Packed(matrix) => Weight::Packed(PackedProduct { matrix, isa: Isa::detect() }),
            Matrix::Quantized(tensor) => Weight::Quantized(QMatMul::from_arc(tensor)?),
        };
        Ok(Self { weight, bias, bytes })
    }

    /// The memory the weight takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Maps `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Dense(weight) => x.matmul(weight)?,
            Weight::Packed(product) => x.apply_op1_no_bwd(product)?,
            // Quantised products take and give f32.
            Weight::Quantized(weight) => weight.forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// A product by the CPU's own kernels, as an operation on candle's tensors.
struct PackedProduct {
    matrix: Arc<QuantMatrix>,
    isa: Isa,
}

impl CustomOp1 for PackedProduct {
    fn name(&self) -> &'static str {
        "packed-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (start, end) =
            layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("the input is not contiguous"))?;
        let tokens = layout.dims()[0];
        let y = self.matrix.multiply(&x.as_slice()?[start..end], self.isa);
        Ok((CpuStorage::F32(y), (tokens, self.matrix.rows).into()))
    }
}

/// Looks up token vectors.
pub struct Embedding {
    matrix: Matrix,
    dtype: DType,
}

impl Embedding {
    pub fn new(matrix: Matrix, dtype: DType) -> Self {
        Self { matrix, dtype }
    }

    /// The output head that shares this matrix.
    pub fn as_head(&self) -> Result<Linear> {
        let matrix = match &self.matrix {
            Matrix::Dense(tensor) => Matrix::Dense(tensor.clone()),
            Matrix::Packed(matrix) => Matrix::Packed(Arc::clone(matrix)),
            Matrix::Quantized(tensor) => Matrix::Quantized(Arc::clone(tensor)),
        };
        Linear::new(matrix, None)
    }

    pub fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    /// The vectors of `tokens`, `[rows]`: `[rows, hidden]`.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Dense(tensor) => tensor.index_select(tokens, 0)?.to_dtype(self.dtype),
            Matrix::Packed(matrix) => {
                let rows: Vec<f32> = tokens.to_vec1::<u32>()?.iter().flat_map(|id| matrix.row(*id as usize)).collect();
                Tensor::from_vec(rows, (tokens.elem_count(), matrix.columns), tokens.device())
            }
            Matrix::Quantized(tensor) => tensor.embedding(tokens)?.to_dtype(self.dtype),
        }
    }
}
