//! Linear maps with their biases, and with what adapters change in some rows.

use candle_core::{DType, Result, Tensor};

use super::ops::Ops;
use crate::{
    adapters::AdaptedRows,
    autograd::{note, with_f32},
    kernels::elementwise::Activation,
    weights::WeightMatrix,
};

/// `y = x Wᵀ + b` with a dense or quantized `W`, `[outputs, inputs]`.
pub struct Linear {
    weight: WeightMatrix,
    bias: Option<Tensor>,
    /// Whether activations are rounded to bfloat16 if the weights are stored as bfloat16.
    rounded: bool,
    /// Its index among the model's [`LoraTargets`](crate::adapters::LoraTargets), if adapters may change it.
    target: Option<usize>,
    ops: Ops,
}

impl Linear {
    pub fn new(weight: WeightMatrix, bias: Option<Tensor>, rounded: bool, ops: &Ops) -> Self {
        Self { weight, bias, rounded, target: None, ops: ops.clone() }
    }

    /// As the LoRA target of this index.
    #[must_use]
    pub fn at(self, target: usize) -> Self {
        Self { target: Some(target), ..self }
    }

    /// The memory the weight takes.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// Maps `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.with_bias(self.ops.multiply(x, &self.weight, self.rounded)?)
    }

    /// [`forward`](Self::forward) with what adapters change in some rows.
    pub fn adapted(&self, x: &Tensor, rows: &AdaptedRows<'_>) -> Result<Tensor> {
        let y = self.ops.multiply(x, &self.weight, self.rounded || rows.are_rounded())?;
        self.adapt(self.with_bias(y)?, x, rows)
    }

    /// [`adapted`](Self::adapted) of several maps with the same input.
    pub fn all_adapted<const N: usize>(linears: [&Self; N], x: &Tensor, rows: &AdaptedRows<'_>) -> Result<[Tensor; N]> {
        let Some(products) = linears[0].ops.multiply_all(x, linears.map(|linear| &linear.weight))? else {
            return all(linears.map(|linear| linear.adapted(x, rows)));
        };
        let mut linears = linears.into_iter();
        all(products.map(|y| match linears.next() {
            Some(linear) => linear.adapt(linear.with_bias(y)?, x, rows),
            None => Ok(y),
        }))
    }

    /// `activation(gate(x)) * up(x)`, if both can be computed together.
    pub fn gated(gate: &Self, up: &Self, x: &Tensor, rows: &AdaptedRows<'_>, by: Activation) -> Result<Option<Tensor>> {
        let more = |linear: &Self| linear.bias.is_some() || linear.target.is_some() && !rows.is_empty();
        if more(gate) || more(up) {
            return Ok(None);
        }
        gate.ops.multiply_gated(x, [&gate.weight, &up.weight], by)
    }

    /// [`adapted`](Self::adapted) to values in memory, without a copy where the kernels computed them there.
    pub fn adapted_to_vec(&self, x: &Tensor, rows: &AdaptedRows<'_>) -> Result<Vec<f32>> {
        if self.bias.is_some() || !self.weight.is_for_kernels() {
            return self.adapted(x, rows)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
        }
        let mut y = self.ops.multiply_to_vec(x, &self.weight, self.rounded)?;
        if let Some(target) = self.target.filter(|_| !rows.is_empty()) {
            with_f32(x, |x| rows.apply_to(target, x, &mut y))?;
        }
        Ok(y)
    }

    fn with_bias(&self, y: Tensor) -> Result<Tensor> {
        let Some(bias) = &self.bias else { return Ok(y) };
        let sum = y.broadcast_add(bias)?;
        note(&[&y], &sum, || |gradient| Ok(vec![gradient]));
        Ok(sum)
    }

    /// Changes the output for `x` in the rows that have adapters.
    fn adapt(&self, y: Tensor, x: &Tensor, rows: &AdaptedRows<'_>) -> Result<Tensor> {
        match self.target.filter(|_| !rows.is_empty()) {
            Some(target) => rows.apply(target, x, y),
            None => Ok(y),
        }
    }
}

fn all<const N: usize>(tensors: [Result<Tensor>; N]) -> Result<[Tensor; N]> {
    let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
    tensors.try_into().map_err(|_| candle_core::Error::Msg("as many results as there are products".into()))
}

/// Looks up token vectors.
pub struct EmbeddingTable {
    weight: WeightMatrix,
    ops: Ops,
}

impl EmbeddingTable {
    pub fn new(weight: WeightMatrix, ops: &Ops) -> Self {
        Self { weight, ops: ops.clone() }
    }

    pub fn weight(&self) -> &WeightMatrix {
        &self.weight
    }

    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// The vectors of `tokens`, `[rows]`: `[rows, hidden]`.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.ops.embed(&self.weight, tokens)
    }
}
