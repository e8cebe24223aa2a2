//! Feed-forward networks.

use candle_core::{Result, Tensor};

use super::{
    linear::Linear,
    load::{Loader, MlpLinears},
    moe::MoeMlp,
    ops::Ops,
    spec::{DenseSpec, MlpSpec},
};
use crate::{adapters::AdaptedRows, kernels::elementwise::Activation};

/// A feed-forward network.
pub enum Mlp {
    Dense(Box<DenseMlp>),
    Experts(Box<MoeMlp>),
}

impl Mlp {
    pub fn load(load: &Loader<'_>, spec: &MlpSpec, hidden_size: usize) -> crate::Result<Self> {
        match spec {
            MlpSpec::Dense(spec) => {
                let matrices = load.mlp(&load.layout.names.mlp, spec, hidden_size)?;
                Ok(Self::Dense(Box::new(DenseMlp::new(matrices, spec, &load.ops))))
            }
            MlpSpec::Experts(spec) => MoeMlp::load(load, spec, hidden_size).map(Box::new).map(Self::Experts),
        }
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.bytes(),
            Self::Experts(experts) => experts.bytes(),
        }
    }

    /// Whether all rows go through the same matrices.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Maps `[rows, hidden]` to as much.
    pub fn forward(&self, x: &Tensor, adapted: &AdaptedRows<'_>) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(x, adapted),
            Self::Experts(experts) => experts.forward(x, adapted),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
pub struct DenseMlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
    ops: Ops,
}

impl DenseMlp {
    pub fn new((gate, up, down): MlpLinears, spec: &DenseSpec, ops: &Ops) -> Self {
        Self { gate, up, down, activation: spec.activation, ops: ops.clone() }
    }

    pub fn bytes(&self) -> usize {
        self.gate.as_ref().map_or(0, Linear::bytes) + self.up.bytes() + self.down.bytes()
    }

    pub fn forward(&self, x: &Tensor, adapted: &AdaptedRows<'_>) -> Result<Tensor> {
        let inner = match &self.gate {
            Some(gate) => match Linear::gated(gate, &self.up, x, adapted, self.activation)? {
                Some(inner) => inner,
                None => {
                    let [gate, up] = Linear::all_adapted([gate, &self.up], x, adapted)?;
                    self.ops.activate(&gate, Some(&up), self.activation)?
                }
            },
            None => self.ops.activate(&self.up.adapted(x, adapted)?, None, self.activation)?,
        };
        self.down.adapted(&inner, adapted)
    }
}
