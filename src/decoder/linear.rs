use std::sync::Arc;

use candle_core::{DType, Device, Layout, Module, Result, Storage, Tensor, quantized::QMatMul};

use crate::{
    kernels::{Isa, dense::DenseMatrix, quantized::QuantMatrix, rows},
    weights::Matrix,
};

/// `y = x Wᵀ + b` with a dense or quantised `W`, `[outputs, inputs]`.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    bytes: usize,
    isa: Isa,
}

enum Weight {
    /// Transposed.
    Dense(Tensor),
    Panels(Arc<DenseMatrix>),
    Packed(Arc<QuantMatrix>),
    Quantized(QMatMul),
}

impl Linear {
    pub fn new(matrix: Matrix, bias: Option<Tensor>) -> Result<Self> {
        let bytes = matrix.bytes();
        let weight = match matrix {
            Matrix::Dense(tensor) => Weight::Dense(tensor.t()?),
            Matrix::Panels(matrix) => Weight::Panels(matrix),
            Matrix::Packed(matrix) => Weight::Packed(matrix),
            Matrix::Quantized(tensor) => Weight::Quantized(QMatMul::from_arc(tensor)?),
        };
        Ok(Self { weight, bias, bytes, isa: Isa::detect() })
    }

    /// The memory the weight takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Maps `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Dense(weight) => x.matmul(weight)?,
            Weight::Panels(matrix) => rows_of(with_f32(x, |x| matrix.multiply(x, self.isa))?, matrix.rows)?,
            Weight::Packed(matrix) => rows_of(with_f32(x, |x| matrix.multiply(x, self.isa))?, matrix.rows)?,
            // Quantised products take and give f32.
            Weight::Quantized(weight) => weight.forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// As `forward`, to numbers in memory. What our own kernels compute is there already.
    pub fn forward_to_vec(&self, x: &Tensor) -> Result<Vec<f32>> {
        match &self.weight {
            Weight::Panels(matrix) if self.bias.is_none() => with_f32(x, |x| matrix.multiply(x, self.isa)),
            Weight::Packed(matrix) if self.bias.is_none() => with_f32(x, |x| matrix.multiply(x, self.isa)),
            _ => self.forward(x)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
        }
    }
}

/// Rows of `len` numbers as a tensor.
fn rows_of(values: Vec<f32>, len: usize) -> Result<Tensor> {
    let rows = values.len() / len;
    Tensor::from_vec(values, (rows, len), &Device::Cpu)
}

/// The rows of these tokens as a tensor.
fn looked_up(tokens: &Tensor, row: impl Fn(usize) -> Vec<f32>, len: usize) -> Result<Tensor> {
    rows_of(tokens.to_vec1::<u32>()?.into_iter().flat_map(|id| row(id as usize)).collect(), len)
}

/// Gives the numbers of a contiguous tensor on the CPU.
pub fn with_f32<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    Ok(read(numbers(&storage, layout)?))
}

/// Computes a tensor of the shape of the first one from the numbers of contiguous tensors on the CPU.
pub fn map<const N: usize>(tensors: [&Tensor; N], compute: impl FnOnce([&[f32]; N]) -> Vec<f32>) -> Result<Tensor> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        *slice = numbers(storage, layout)?;
    }
    Tensor::from_vec(compute(slices), tensors[0].shape(), &Device::Cpu)
}

/// `x + scale * y`.
pub fn add(x: &Tensor, y: &Tensor, scale: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x + (y * f64::from(scale))?;
    }
    map([x, y], |[x, y]| rows::add(x, y, scale, Isa::detect()))
}

fn numbers<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(&storage.as_slice::<f32>()?[start..end]),
        _ => candle_core::bail!("the tensor is not contiguous, or not on the CPU"),
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
    pub fn as_head(&self, bias: Option<Tensor>) -> Result<Linear> {
        Linear::new(self.matrix.clone(), bias)
    }

    pub fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    /// The vectors of `tokens`, `[rows]`: `[rows, hidden]`.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Dense(tensor) => tensor.index_select(tokens, 0)?.to_dtype(self.dtype),
            Matrix::Panels(matrix) => looked_up(tokens, |id| matrix.row(id), matrix.columns),
            Matrix::Packed(matrix) => looked_up(tokens, |id| matrix.row(id), matrix.columns),
            Matrix::Quantized(tensor) => tensor.embedding(tokens)?.to_dtype(self.dtype),
        }
    }
}
