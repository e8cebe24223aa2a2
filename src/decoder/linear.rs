use std::sync::Arc;

use candle_core::{DType, Error, Module, Result, Tensor, quantized::QMatMul};

use super::{
    differentiable::{self, rows_of, with_f32},
    lora::AdaptedRows,
    tape::{is_tracked, note},
};
use crate::{
    kernels::{
        Isa,
        dense::{DenseMatrix, transposed},
        elementwise::{self, Activation},
        quant::{QuantMatrix, multiply_all, multiply_gated},
    },
    weights::Matrix,
};

/// `y = x Wᵀ + b` with a dense or quantized `W`, `[outputs, inputs]`.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    bytes: usize,
    isa: Isa,
    /// Whether activations are rounded to bfloat16 if the weights are of that.
    rounded: bool,
    /// Its index among the model's [`LoraTargets`](super::lora::LoraTargets), if adapters may change it.
    target: Option<usize>,
}

enum Weight {
    /// Transposed.
    Dense(Tensor),
    Panels(Arc<DenseMatrix>),
    Packed(Arc<QuantMatrix>),
    Quantized(QMatMul),
}

impl Linear {
    pub fn new(matrix: Matrix, bias: Option<Tensor>, rounded: bool, isa: Isa) -> Result<Self> {
        let bytes = matrix.bytes();
        let weight = match matrix {
            Matrix::Dense(tensor) => Weight::Dense(tensor.t()?),
            Matrix::Panels(matrix) => Weight::Panels(matrix),
            Matrix::Packed(matrix) => Weight::Packed(matrix),
            Matrix::Quantized(tensor) => Weight::Quantized(QMatMul::from_arc(tensor)?),
        };
        Ok(Self { weight, bias, bytes, isa, rounded, target: None })
    }

    /// As the target of this index.
    #[must_use]
    pub fn at(self, target: Option<usize>) -> Self {
        Self { target, ..self }
    }

    /// The memory the weight takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Maps `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_as(x, self.rounded)
    }

    /// As `forward`, in bfloat16 if it is to be `rounded`.
    fn forward_as(&self, x: &Tensor, rounded: bool) -> Result<Tensor> {
        let isa = self.isa;
        let y = match &self.weight {
            Weight::Dense(weight) => x.matmul(weight)?,
            Weight::Panels(matrix) => {
                let back = matrix.clone();
                let forward = |x: &[f32]| match rounded {
                    true => Ok(matrix.multiply_rounded(x, isa)),
                    false => Ok(matrix.multiply(x, isa)),
                };
                differentiable::linear(x, matrix.rows, forward, move |gradient| match rounded {
                    true => Ok(transposed::multiply_rounded(&gradient, &*back, isa)),
                    false => Ok(transposed::multiply(&gradient, &*back, isa)),
                })?
            }
            Weight::Packed(matrix) => {
                let back = matrix.clone();
                let forward = |x: &[f32]| Ok(matrix.multiply(x, isa));
                differentiable::linear(x, matrix.rows, forward, move |gradient| {
                    Ok(back.multiply_transposed(&gradient, rounded, isa))
                })?
            }
            // Quantized products take and give f32.
            Weight::Quantized(weight) => weight.forward(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())?,
        };
        match &self.bias {
            Some(bias) => {
                let sum = y.broadcast_add(bias)?;
                note(&[&y], &sum, || |gradient| Ok(vec![gradient]));
                Ok(sum)
            }
            None => Ok(y),
        }
    }

    /// As `forward`, to values in memory. What our own kernels compute is there already.
    pub fn forward_to_vec(&self, x: &Tensor) -> Result<Vec<f32>> {
        match &self.weight {
            Weight::Panels(matrix) if self.bias.is_none() => with_f32(x, |x| match self.rounded {
                true => matrix.multiply_rounded(x, self.isa),
                false => matrix.multiply(x, self.isa),
            }),
            Weight::Packed(matrix) if self.bias.is_none() => with_f32(x, |x| matrix.multiply(x, self.isa)),
            _ => self.forward(x)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
        }
    }

    /// As `forward`, with what adapters change in some rows.
    pub fn adapted(&self, x: &Tensor, rows: &AdaptedRows<'_>) -> Result<Tensor> {
        let y = self.forward_as(x, self.rounded || rows.are_rounded())?;
        match self.target.filter(|_| !rows.is_empty()) {
            Some(target) => rows.apply(target, x, y),
            None => Ok(y),
        }
    }

    /// As `adapted`, of several with the same input.
    pub fn all_adapted<const N: usize>(linears: [&Self; N], x: &Tensor, rows: &AdaptedRows<'_>) -> Result<[Tensor; N]> {
        let Some(matrices) = Self::all_packed(linears, x) else {
            return all(linears.map(|linear| linear.adapted(x, rows)));
        };
        let values = with_f32(x, |x| multiply_all(matrices, x, linears[0].isa))?;
        let mut index = 0;
        all(values.map(|values| {
            let linear = linears[index];
            index += 1;
            linear.completed(rows_of(values, matrices[index - 1].rows)?, x, rows)
        }))
    }

    /// `activation(gate(x)) * up(x)`, if they can be computed together.
    pub fn gated(gate: &Self, up: &Self, x: &Tensor, rows: &AdaptedRows<'_>, by: Activation) -> Result<Option<Tensor>> {
        let adapted = |linear: &Self| linear.bias.is_some() || linear.target.is_some() && !rows.is_empty();
        if adapted(gate) || adapted(up) {
            return Ok(None);
        }
        let Some(matrices) = Self::all_packed([gate, up], x) else { return Ok(None) };
        match with_f32(x, |x| multiply_gated(matrices, x, by, gate.isa))? {
            Some(values) => rows_of(values, matrices[0].rows).map(Some),
            None => Ok(None),
        }
    }

    /// Their matrices, if our own kernels have them all and nobody asks for gradients.
    fn all_packed<'a, const N: usize>(linears: [&'a Self; N], x: &Tensor) -> Option<[&'a QuantMatrix; N]> {
        let packed: Vec<_> = linears
            .iter()
            .map_while(|linear| match &linear.weight {
                Weight::Packed(matrix) if !is_tracked(x) => Some(&**matrix),
                _ => None,
            })
            .collect();
        packed.try_into().ok()
    }

    /// A product with its bias and what adapters change.
    fn completed(&self, y: Tensor, x: &Tensor, rows: &AdaptedRows<'_>) -> Result<Tensor> {
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        match self.target.filter(|_| !rows.is_empty()) {
            Some(target) => rows.apply(target, x, y),
            None => Ok(y),
        }
    }

    /// As `forward_to_vec`, with what adapters change in some rows.
    pub fn adapted_to_vec(&self, x: &Tensor, rows: &AdaptedRows<'_>) -> Result<Vec<f32>> {
        let mut y = self.forward_to_vec(x)?;
        if let Some(target) = self.target.filter(|_| !rows.is_empty()) {
            with_f32(x, |x| rows.apply_to(target, x, &mut y))?;
        }
        Ok(y)
    }
}

fn all<const N: usize>(tensors: [Result<Tensor>; N]) -> Result<[Tensor; N]> {
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    tensors.try_into().map_err(|_| Error::Msg("as many results as there are products".into()))
}

/// The rows of these tokens as a tensor.
fn looked_up(tokens: &Tensor, row: impl Fn(usize) -> Vec<f32>, len: usize) -> Result<Tensor> {
    rows_of(tokens.to_vec1::<u32>()?.into_iter().flat_map(|id| row(id as usize)).collect(), len)
}

/// `x + scale * y`.
pub fn add(x: &Tensor, y: &Tensor, scale: f32, isa: Isa) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x + (y * f64::from(scale))?;
    }
    let add = |x: &[f32], y: &[f32]| elementwise::add(x, y, scale, isa);
    let sum = rows_of(with_f32(x, |x| with_f32(y, |y| add(x, y)))??, x.dim(1)?)?;
    note(&[x, y], &sum, || {
        move |gradient: Vec<f32>| {
            let grad_y = gradient.iter().map(|value| value * scale).collect();
            Ok(vec![gradient, grad_y])
        }
    });
    Ok(sum)
}

/// Looks up token vectors.
pub struct EmbeddingTable {
    matrix: Matrix,
    dtype: DType,
}

impl EmbeddingTable {
    pub fn new(matrix: Matrix, dtype: DType) -> Self {
        Self { matrix, dtype }
    }

    pub fn matrix(&self) -> &Matrix {
        &self.matrix
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
