//! Loads single parts of a decoder.

use candle_core::Tensor;

use super::tensor_names::TensorNames;
use crate::{
    Error, Quantize, Result,
    adapters::{LoraTarget, LoraTargetsBuilder},
    decoder::{
        Placement, Spec,
        layout::Layout,
        linear::Linear,
        norm::Norm,
        ops::{NormWeights, Ops},
        spec::NormSpec,
    },
    weights::{Checkpoint, StoredMatrix, WeightMatrix},
};

/// Loads the parts of a decoder to where they are computed with.
#[derive(Clone)]
pub struct Loader<'a> {
    pub(super) names: TensorNames<'a>,
    pub layout: &'a Layout,
    /// Takes note of the linear maps that adapters may change, unless they may change none.
    targets: Option<&'a LoraTargetsBuilder>,
    pub ops: Ops,
    /// Bits to quantize matrices to that are not quantized yet.
    quantize: Option<Quantize>,
    /// Whether activations are rounded to bfloat16 where the matrix is stored as bfloat16.
    rounded: bool,
}

impl<'a> Loader<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        spec: &'a Spec,
        targets: &'a LoraTargetsBuilder,
        placement: &Placement,
    ) -> Self {
        let Placement { ops, quantize, rounded, .. } = placement;
        let layout = &spec.layout;
        let hub_layout = spec.hub_layout.as_ref().unwrap_or(layout);
        let names = TensorNames { checkpoint, layout, hub_layout, layer: None };
        let targets = Some(targets);
        Self { names, layout, targets, ops: ops.clone(), quantize: *quantize, rounded: *rounded }
    }

    /// For linear maps that stay in the precision of the file, and whose inputs do, and that adapters may not change.
    pub fn as_stored(&self) -> Self {
        Self { quantize: None, rounded: false, ..self.unadapted() }
    }

    /// For linear maps that adapters may not change.
    pub fn unadapted(&self) -> Self {
        Self { targets: None, ..self.clone() }
    }

    /// For the modules of a layer.
    pub fn layer(&self, layer: usize) -> Self {
        Self { names: TensorNames { layer: Some(layer), ..self.names }, ..self.clone() }
    }

    /// Whether a module has a weight.
    pub fn contains(&self, module: &str) -> bool {
        self.names.has_weight(module)
    }

    /// A matrix that is stored as one of `shape`.
    pub fn matrix(&self, module: &str, shape: [usize; 2]) -> Result<WeightMatrix> {
        self.place(self.names.checkpoint.matrix(&self.names.tensor(module, "weight"), &shape)?)
    }

    pub(super) fn place(&self, matrix: StoredMatrix<'_>) -> Result<WeightMatrix> {
        let target = &self.ops.compute_target();
        match self.quantize {
            // The embedding and the output matrix bear no fewer than 8.
            Some(Quantize::Int4) if self.names.layer.is_some() => WeightMatrix::quantize(matrix, 4, target),
            Some(_) => WeightMatrix::quantize(matrix, 8, target),
            None => WeightMatrix::place(matrix, target),
        }
    }

    pub(super) fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        Ok(Tensor::new(values, self.ops.device())?.to_dtype(self.ops.dtype())?)
    }

    /// The weights of a linear map as they are stored, `[rows, columns]`.
    pub(super) fn weight(&self, module: &str, [rows, columns]: [usize; 2]) -> Result<StoredMatrix<'a>> {
        let (name, checkpoint) = (self.names.tensor(module, "weight"), self.names.checkpoint);
        if !(self.layout.transposed && self.names.layer.is_some()) {
            return checkpoint.matrix(&name, &[rows, columns]);
        }
        self.transposed(&name, checkpoint.matrix(&name, &[columns, rows])?)
    }

    pub(super) fn transposed<'b>(&self, name: &str, stored: StoredMatrix<'b>) -> Result<StoredMatrix<'b>> {
        let path = &self.names.checkpoint.path;
        stored.transposed()?.ok_or_else(|| Error::model(path, format!("tensor {name} is quantized")))
    }

    /// A parameter that is no matrix.
    pub fn values(&self, module: &str, len: usize) -> Result<Vec<f32>> {
        self.names.checkpoint.vector(&self.names.tensor(module, "weight"), len)
    }

    pub(super) fn biases(&self, module: &str, rows: usize) -> Result<Vec<f32>> {
        self.names.checkpoint.vector(&self.names.tensor(module, "bias"), rows)
    }

    /// The bias of a linear map, if it `has` one.
    fn bias(&self, module: &str, rows: usize, has: bool) -> Result<Option<Tensor>> {
        has.then(|| self.vector(self.biases(module, rows)?)).transpose()
    }

    pub fn linear(&self, module: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.place(self.weight(module, shape)?)?;
        self.adaptable(self.names.in_hub(module, false), weight, self.bias(module, shape[0], bias)?, None)
    }

    /// The head that has the embedding's matrix.
    pub fn head(&self, matrix: WeightMatrix, rows: usize, bias: bool) -> Result<Linear> {
        let module = self.layout.names.head;
        self.adaptable(self.names.in_hub(module, false), matrix, self.bias(module, rows, bias)?, None)
    }

    /// A linear map that is noted as a target of its module in the Hugging Face model: `part` says which rows of how
    /// many it makes, if not all in order.
    pub(super) fn adaptable(
        &self,
        module: Option<String>,
        weight: WeightMatrix,
        bias: Option<Tensor>,
        part: Option<(Vec<usize>, usize)>,
    ) -> Result<Linear> {
        let (Some(targets), Some(module)) = (self.targets, module) else { return Ok(self.unadaptable(weight, bias)) };
        let (rows, module_outputs) = match part {
            Some((rows, of)) => (Some(rows), of),
            None => (None, weight.shape()?[0]),
        };
        let target = targets.add(LoraTarget {
            layer: self.names.layer,
            module,
            rows,
            module_outputs,
            weight: weight.clone(),
            bias: bias.clone(),
            compute: self.ops.compute_target(),
        });
        Ok(self.unadaptable(weight, bias).at(target))
    }

    /// A linear map that adapters may not change.
    pub(super) fn unadaptable(&self, weight: WeightMatrix, bias: Option<Tensor>) -> Linear {
        Linear::new(weight, bias, self.rounded, &self.ops)
    }

    /// The biases that a router adds to its scores for the choice of experts.
    pub fn router_biases(&self, experts: usize) -> Result<Vec<f32>> {
        let (module, parameter) = self.layout.names.router_biases;
        self.names.checkpoint.vector(&self.names.tensor(module, parameter), experts)
    }

    /// A norm of `len` elements, of which `size` are normalized together. A `{}` in the name stands for one such piece.
    pub fn norm(&self, module: &str, spec: NormSpec, len: usize, size: usize) -> Result<Norm> {
        let read = |parameter: &str| -> Result<Vec<f32>> {
            let part = |part: usize| {
                let name = self.names.tensor(&module.replace("{}", &part.to_string()), parameter);
                self.names.checkpoint.vector(&name, size)
            };
            match module.contains("{}") {
                true => Ok((0..len / size).map(part).collect::<Result<Vec<_>>>()?.concat()),
                false => self.names.checkpoint.vector(&self.names.tensor(module, parameter), len),
            }
        };
        let mut weight = if spec.weight { read("weight")? } else { vec![1.0; len] };
        if self.layout.norm_less_one {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let bias = if spec.bias { Some(self.vector(read("bias")?)?) } else { None };
        let NormSpec { kind, eps, .. } = spec;
        Ok(Norm::new(NormWeights { weight: self.vector(weight)?, bias, size, kind, eps }, &self.ops))
    }
}
