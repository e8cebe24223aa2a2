use std::{iter::StepBy, ops::Range};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{
    Placement, Spec,
    layout::{Layout, MlpNames},
    linear::Linear,
    lora::{LoraTarget, LoraTargetsBuilder},
    norm::Norm,
    spec::{DenseSpec, ExpertsSpec, NormSpec},
};
use crate::{
    Error, Quantize, Result,
    kernels::{Isa, elementwise::RopeStyle},
    weights::{Checkpoint, Matrix, StoredMatrix},
};

/// The matrices of a feed-forward network: gate, if it has one, up and down.
pub type MlpLinears = (Option<Linear>, Linear, Linear);

/// Loads the parts of a decoder to where it runs.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    pub layout: &'a Layout,
    /// That of the Hugging Face model, after which adapters call modules.
    hub_layout: &'a Layout,
    /// Where linear maps are noted that adapters may change.
    builder: Option<&'a LoraTargetsBuilder>,
    /// The layer that modules are in, if any.
    layer: Option<usize>,
    pub device: &'a Device,
    /// The type of activations and of weights that are not quantized.
    pub dtype: DType,
    /// Bits to quantize matrices to that are not quantized yet.
    quantize: Option<Quantize>,
    /// Whether activations are rounded to bfloat16 where the matrix is of that.
    rounded: bool,
    /// What the CPU's kernels run on.
    pub isa: Isa,
}

impl<'a> Loader<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        spec: &'a Spec,
        builder: &'a LoraTargetsBuilder,
        placement: &'a Placement,
    ) -> Self {
        let Placement { device, dtype, quantize, rounded, isa, .. } = placement;
        let (dtype, quantize, rounded, isa) = (*dtype, *quantize, *rounded, *isa);
        let layout = &spec.layout;
        let hub_layout = spec.hub_layout.as_ref().unwrap_or(layout);
        let (builder, layer) = (Some(builder), None);
        Self { checkpoint, layout, hub_layout, builder, layer, device, dtype, quantize, rounded, isa }
    }

    /// Keeps what it loads and what meets it as they are, adapters or not.
    pub fn as_stored(&self) -> Self {
        Self { quantize: None, rounded: false, ..self.unadapted() }
    }

    /// Keeps adapters away from what it loads.
    pub fn unadapted(&self) -> Self {
        Self { builder: None, ..*self }
    }

    /// For the modules of a layer.
    pub fn layer(&self, layer: usize) -> Self {
        Self { layer: Some(layer), ..*self }
    }

    fn name(&self, module: &str, parameter: &str) -> String {
        let path = match self.layer {
            Some(layer) => format!("{}.{layer}.{module}", self.layout.names.layers),
            None => module.to_owned(),
        };
        let path = self.layout.stored_name(&path);
        let name = format!("{path}.{parameter}");
        if self.checkpoint.contains(&name) {
            return name;
        }
        let alone = if parameter == "weight" { path } else { format!("{path}_{parameter}") };
        if self.checkpoint.contains(&alone) { alone } else { name }
    }

    /// Whether a module has a weight.
    pub fn contains(&self, module: &str) -> bool {
        self.checkpoint.contains(&self.name(module, "weight"))
    }

    /// A matrix that is stored as one of `shape`.
    pub fn matrix(&self, module: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.place(self.checkpoint.matrix(&self.name(module, "weight"), &shape)?)
    }

    fn place(&self, matrix: StoredMatrix<'_>) -> Result<Matrix> {
        match self.quantize {
            // The embedding and the output matrix bear no fewer than 8.
            Some(Quantize::Int4) if self.layer.is_some() => Matrix::quantized(matrix, 4, self.dtype, self.device),
            Some(_) => Matrix::quantized(matrix, 8, self.dtype, self.device),
            None => Matrix::new(matrix, self.dtype, self.device),
        }
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor> {
        Ok(Tensor::new(values, self.device)?.to_dtype(self.dtype)?)
    }

    /// The weights of a linear map as they are stored, `[rows, columns]`.
    fn weight(&self, module: &str, [rows, columns]: [usize; 2]) -> Result<StoredMatrix<'_>> {
        let name = self.name(module, "weight");
        if !(self.layout.transposed && self.layer.is_some()) {
            return self.checkpoint.matrix(&name, &[rows, columns]);
        }
        self.transposed(&name, self.checkpoint.matrix(&name, &[columns, rows])?)
    }

    fn transposed<'b>(&self, name: &str, stored: StoredMatrix<'b>) -> Result<StoredMatrix<'b>> {
        stored.transposed()?.ok_or_else(|| Error::model(&self.checkpoint.path, format!("tensor {name} is quantized")))
    }

    /// A module's numbers that are no matrix.
    pub fn values(&self, module: &str, len: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(&self.name(module, "weight"), len)
    }

    fn biases(&self, module: &str, rows: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(&self.name(module, "bias"), rows)
    }

    /// The bias of a linear map, if it `has` one.
    pub fn bias(&self, module: &str, rows: usize, has: bool) -> Result<Option<Tensor>> {
        has.then(|| self.vector(self.biases(module, rows)?)).transpose()
    }

    pub fn linear(&self, module: &str, shape: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.place(self.weight(module, shape)?)?;
        self.adaptable(self.hub_name(module, false), weight, self.bias(module, shape[0], bias)?, None)
    }

    /// The head that has the embedding's matrix.
    pub fn head(&self, matrix: Matrix, rows: usize, bias: bool) -> Result<Linear> {
        let module = self.layout.names.head;
        self.adaptable(self.hub_name(module, false), matrix, self.bias(module, rows, bias)?, None)
    }

    /// A linear map that is noted as a target of its module in the Hugging Face model: `part` says which rows of how
    /// many it makes, if not all in order.
    fn adaptable(
        &self,
        module: Option<String>,
        weight: Matrix,
        bias: Option<Tensor>,
        part: Option<(Vec<usize>, usize)>,
    ) -> Result<Linear> {
        let target = match (self.builder, module) {
            (Some(builder), Some(module)) => {
                let (rows, module_outputs) = match part {
                    Some((rows, of)) => (Some(rows), of),
                    None => (None, weight.shape()?[0]),
                };
                let target = LoraTarget {
                    layer: self.layer,
                    module,
                    rows,
                    module_outputs,
                    weight: weight.clone(),
                    bias: bias.clone(),
                    isa: self.isa,
                };
                Some(builder.add(target))
            }
            _ => None,
        };
        Ok(Linear::new(weight, bias, self.rounded, self.isa)?.at(target))
    }

    /// What the Hugging Face model calls a module of several linear maps, or of one.
    fn hub_name(&self, module: &str, several: bool) -> Option<String> {
        let (ours, theirs) = (&self.layout.names, &self.hub_layout.names);
        let module = match std::ptr::eq(ours, theirs) {
            true => module,
            false => ours.translate(module, several, theirs)?,
        };
        Some(match self.layer {
            Some(layer) => format!("{}.{layer}.{module}", theirs.layers),
            None => module.to_owned(),
        })
    }

    /// Linear maps that are rows of one matrix of `shape`; which, a layout says. It is only asked once there is such a
    /// matrix: sizes that no tensor has been held against yet may be absurd.
    fn parts(
        &self,
        module: &str,
        shape: [usize; 2],
        bias: bool,
        parts: impl Fn(&Layout) -> Vec<Vec<usize>>,
    ) -> Result<Vec<Linear>> {
        let weight = self.weight(module, shape)?;
        let biases = bias.then(|| self.biases(module, shape[0])).transpose()?;
        let (stored, in_hub) = (parts(self.layout), parts(self.hub_layout));
        let hub_name = self.hub_name(module, stored.len() > 1);
        let part = |(rows, in_hub): (&Vec<usize>, Vec<usize>)| {
            let weight = self.place(weight.take(rows.iter().copied())?)?;
            let bias = biases.as_ref().map(|biases| self.vector(rows.iter().map(|row| biases[*row]).collect()));
            self.adaptable(hub_name.clone(), weight, bias.transpose()?, Some((in_hub, shape[0])))
        };
        stored.iter().zip(in_hub).map(part).collect()
    }

    /// The projections to queries, keys and values.
    pub fn qkv(&self, spec: &Spec) -> Result<[Linear; 3]> {
        let names = &self.layout.names;
        let attention = &spec.attention;
        let (head_dim, bias) = (attention.head_dim, attention.qkv_bias);
        let heads = [attention.num_heads, attention.num_kv_heads, attention.num_kv_heads];
        let widths = heads.map(|heads| heads.saturating_mul(head_dim));
        if self.layout.rope_style == RopeStyle::Interleaved && !head_dim.is_multiple_of(2) {
            let reason = format!("heads of {head_dim} have no two halves");
            return Err(Error::model(&self.checkpoint.path, reason));
        }
        let linears = if self.contains(names.query) {
            let load = |((module, turns), width): ((&str, bool), usize)| {
                let shape = [width, spec.hidden_size];
                if turns && self.layout.rope_style == RopeStyle::Interleaved {
                    let rows = |layout: &Layout| match layout.rope_style {
                        RopeStyle::Interleaved => vec![in_halves(width, head_dim)],
                        RopeStyle::NeoX => vec![(0..width).collect()],
                    };
                    return Ok(self.parts(module, shape, bias, rows)?.remove(0));
                }
                self.linear(module, shape, bias)
            };
            let modules = [(names.query, true), (names.key, true), (names.value, false)];
            modules.into_iter().zip(widths).map(load).collect::<Result<Vec<_>>>()?
        } else {
            let all = widths.into_iter().fold(0, usize::saturating_add);
            let rows = |layout: &Layout| match layout.qkv_by_head {
                true => rows_by_head(heads, head_dim),
                false => rows_by_kind(widths),
            };
            self.parts(names.qkv, [all, spec.hidden_size], bias, rows)?
        };
        linears.try_into().map_err(|_| Error::internal("queries, keys and values are three"))
    }

    pub fn mlp(&self, names: &MlpNames<'_>, spec: &DenseSpec, hidden_size: usize) -> Result<MlpLinears> {
        let DenseSpec { intermediate_size: inner, gated, bias, .. } = *spec;
        let down = self.linear(names.down, [hidden_size, inner], bias)?;
        if gated && !self.contains(names.gate) {
            let rows = |layout: &Layout| gate_up_rows(layout, inner).map(Iterator::collect).into();
            let parts = self.parts(names.gate_up, [2 * inner, hidden_size], bias, rows)?;
            let parts: Result<[Linear; 2], _> = parts.try_into();
            let [gate, up] = parts.map_err(|_| Error::internal("gate and up are two"))?;
            return Ok((Some(gate), up, down));
        }
        let gate = if gated { Some(self.linear(names.gate, [inner, hidden_size], bias)?) } else { None };
        Ok((gate, self.linear(names.up, [inner, hidden_size], bias)?, down))
    }

    /// The networks of all experts, out of tensors that have the matrices of all.
    pub fn experts(&self, spec: &ExpertsSpec, hidden_size: usize) -> Result<Vec<MlpLinears>> {
        let (names, count) = (&self.layout.names.experts, spec.num_experts);
        let DenseSpec { intermediate_size: inner, bias, .. } = spec.expert;
        let whole = |rows: usize| (0..rows).step_by(1);
        let downs = self.stacked(names.down, [count, hidden_size, inner], bias, whole(hidden_size))?;
        let (gates, ups) = if self.contains(names.gate) {
            let linears = |module| self.stacked(module, [count, inner, hidden_size], bias, whole(inner));
            (linears(names.gate)?, linears(names.up)?)
        } else {
            let linears = |rows| self.stacked(names.gate_up, [count, 2 * inner, hidden_size], bias, rows);
            let [gate, up] = gate_up_rows(self.layout, inner);
            (linears(gate)?, linears(up)?)
        };
        Ok(gates.into_iter().zip(ups).zip(downs).map(|((gate, up), down)| (Some(gate), up, down)).collect())
    }

    /// For each expert these rows of its matrix as a linear map, out of a tensor of `shape` that has the matrices of
    /// all.
    fn stacked(
        &self,
        module: &str,
        shape @ [experts, height, width]: [usize; 3],
        bias: bool,
        rows: StepBy<Range<usize>>,
    ) -> Result<Vec<Linear>> {
        let name = self.name(module, "weight");
        let transposed = self.layout.experts_transposed && !name.ends_with(".weight");
        let all = self.checkpoint.matrix(&name, &if transposed { [experts, width, height] } else { shape })?;
        let biases = bias.then(|| self.biases(module, experts * height)).transpose()?;
        let linear = |expert: usize| {
            let rows_of_all = rows.clone().map(move |row| expert * height + row);
            let bias = biases.as_ref().map(|all| self.vector(rows_of_all.clone().map(|row| all[row]).collect()));
            let weight = match transposed {
                true => self.transposed(&name, all.take(expert * width..(expert + 1) * width)?)?.take(rows.clone())?,
                false => all.take(rows_of_all)?,
            };
            Ok(Linear::new(self.place(weight)?, bias.transpose()?, self.rounded, self.isa)?)
        };
        (0..experts).into_par_iter().map(linear).collect()
    }

    /// What is added to a router's scores for the choice of experts.
    pub fn router_biases(&self, experts: usize) -> Result<Vec<f32>> {
        let (module, parameter) = self.layout.names.router_biases;
        self.checkpoint.vector(&self.name(module, parameter), experts)
    }

    /// A norm of `len` numbers, of which `size` are normalized together. A `{}` in the name stands for one such piece.
    pub fn norm(&self, module: &str, spec: NormSpec, len: usize, size: usize) -> Result<Norm> {
        let read = |parameter: &str| -> Result<Vec<f32>> {
            let part = |part: usize| {
                let name = self.name(&module.replace("{}", &part.to_string()), parameter);
                self.checkpoint.vector(&name, size)
            };
            match module.contains("{}") {
                true => Ok((0..len / size).map(part).collect::<Result<Vec<_>>>()?.concat()),
                false => self.checkpoint.vector(&self.name(module, parameter), len),
            }
        };
        let mut weight = if spec.weight { read("weight")? } else { vec![1.0; len] };
        if self.layout.norm_less_one {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let bias = if spec.bias { Some(self.vector(read("bias")?)?) } else { None };
        Ok(Norm::new(self.vector(weight)?, bias, size, spec, self.isa))
    }
}

/// The rows of gate and of up in a matrix that is both.
fn gate_up_rows(layout: &Layout, inner: usize) -> [StepBy<Range<usize>>; 2] {
    match layout.gate_up_in_turn {
        true => [(0..2 * inner).step_by(2), (1..2 * inner).step_by(2)],
        false => [(0..inner).step_by(1), (inner..2 * inner).step_by(1)],
    }
}

/// The stored rows of heads whose pairs are neighbours, in the order that has the halves of what is turned one after
/// the other.
fn in_halves(rows: usize, head_dim: usize) -> Vec<usize> {
    let row = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        head * head_dim + 2 * pair + half
    };
    (0..rows).map(row).collect()
}

/// The rows of queries, keys and values that follow each other.
fn rows_by_kind(widths: [usize; 3]) -> Vec<Vec<usize>> {
    let [queries, keys, values] = widths;
    vec![
        (0..queries).collect(),
        (queries..queries + keys).collect(),
        (queries + keys..queries + keys + values).collect(),
    ]
}

/// Those of matrices that have for each key head its queries, the key and the value.
fn rows_by_head([num_heads, num_kv_heads, _]: [usize; 3], head_dim: usize) -> Vec<Vec<usize>> {
    let group = num_heads / num_kv_heads;
    let rows = |of_group: Range<usize>| {
        let heads =
            (0..num_kv_heads).flat_map(move |kv_head| of_group.clone().map(move |at| kv_head * (group + 2) + at));
        heads.flat_map(|head| head * head_dim..(head + 1) * head_dim).collect()
    };
    vec![rows(0..group), rows(group..group + 1), rows(group + 1..group + 2)]
}
