use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::{
    Spec,
    layout::{Layout, MlpNames},
    linear::Linear,
    norm::Norm,
    spec::{DenseSpec, NormSpec},
};
use crate::{
    Error, Quantize, Result,
    kernels::rows::Pairs,
    weights::{Checkpoint, Matrix, StoredMatrix},
};

/// Loads the parts of a decoder to where it runs.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    pub layout: &'a Layout,
    /// What names begin with, and what they begin with in this checkpoint.
    prefix: (&'a str, &'a str),
    /// The layer that modules are in, if any.
    layer: Option<usize>,
    pub device: &'a Device,
    /// The type of activations and of weights that are not quantised.
    pub dtype: DType,
    /// Bits to quantise matrices to that are not quantised yet.
    quantize: Option<Quantize>,
}

impl<'a> Loader<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        layout: &'a Layout,
        device: &'a Device,
        dtype: DType,
        quantize: Option<Quantize>,
    ) -> Self {
        let mut this = Self { checkpoint, layout, prefix: ("", ""), layer: None, device, dtype, quantize };
        let there = |prefix: &(&'a str, &'a str)| Self { prefix: *prefix, ..this }.contains(layout.names.embedding);
        if let Some(prefix) = layout.prefixes.iter().find(|prefix| there(prefix)) {
            this.prefix = *prefix;
        }
        this
    }

    /// Keeps what it loads as it is stored.
    pub fn as_stored(&self) -> Self {
        Self { quantize: None, ..*self }
    }

    /// For the modules of a layer.
    pub fn layer(&self, layer: usize) -> Self {
        Self { layer: Some(layer), ..*self }
    }

    fn name(&self, module: &str, parameter: &str) -> String {
        let name = match self.layer {
            Some(layer) => format!("{}.{layer}.{module}.{parameter}", self.layout.names.layers),
            None => format!("{module}.{parameter}"),
        };
        match name.strip_prefix(self.prefix.0) {
            Some(rest) => format!("{}{rest}", self.prefix.1),
            None => name,
        }
    }

    /// Whether a module has a weight.
    pub fn contains(&self, module: &str) -> bool {
        self.checkpoint.contains(&self.name(module, "weight"))
    }

    /// A matrix that is stored as one of `shape`.
    pub fn matrix(&self, module: &str, shape: [usize; 2]) -> Result<Matrix> {
        let matrix = self.place(self.checkpoint.matrix(&self.name(module, "weight"), &shape)?);
        self.release(module);
        matrix
    }

    fn place(&self, matrix: StoredMatrix<'_>) -> Result<Matrix> {
        match self.quantize {
            // The embedding and the output matrix bear no fewer than 8.
            Some(Quantize::Int4) if self.layer.is_some() => Matrix::quantized(matrix, 4, self.dtype, self.device),
            Some(_) => Matrix::quantized(matrix, 8, self.dtype, self.device),
            None => Matrix::new(matrix, self.dtype, self.device),
        }
    }

    /// What was read is not needed any more.
    fn release(&self, module: &str) {
        self.checkpoint.release(&self.name(module, "weight"));
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
        let stored = self.checkpoint.matrix(&name, &[columns, rows])?;
        stored.transposed().ok_or_else(|| Error::model(&self.checkpoint.path, format!("tensor {name} is quantised")))
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
        self.release(module);
        Ok(Linear::new(weight, self.bias(module, shape[0], bias)?)?)
    }

    /// Linear maps that are rows of one matrix of `shape`. Which rows is only asked once there is such a matrix: sizes
    /// that no tensor has been held against yet may be absurd.
    fn parts(
        &self,
        module: &str,
        shape: [usize; 2],
        bias: bool,
        parts: impl FnOnce() -> Vec<Vec<usize>>,
    ) -> Result<Vec<Linear>> {
        let weight = self.weight(module, shape)?;
        let biases = bias.then(|| self.biases(module, shape[0])).transpose()?;
        let part = |rows: &Vec<usize>| {
            let weight = self.place(weight.take(rows.iter().copied()))?;
            let bias = biases.as_ref().map(|biases| self.vector(rows.iter().map(|row| biases[*row]).collect()));
            Ok(Linear::new(weight, bias.transpose()?)?)
        };
        let linears = parts().iter().map(part).collect();
        self.release(module);
        linears
    }

    /// The projections to queries, keys and values.
    pub fn qkv(&self, spec: &Spec) -> Result<[Linear; 3]> {
        let names = &self.layout.names;
        let attention = &spec.attention;
        let (head_dim, bias) = (attention.head_dim, attention.qkv_bias);
        let heads = [attention.num_heads, attention.num_kv_heads, attention.num_kv_heads];
        let widths = heads.map(|heads| heads.saturating_mul(head_dim));
        if self.layout.pairs == Pairs::Neighbours && !head_dim.is_multiple_of(2) {
            let reason = format!("heads of {head_dim} have no two halves");
            return Err(Error::model(&self.checkpoint.path, reason));
        }
        let linears = if self.contains(names.query) {
            let load = |((module, turns), width): ((&str, bool), usize)| {
                let shape = [width, spec.hidden_size];
                if turns && self.layout.pairs == Pairs::Neighbours {
                    return Ok(self.parts(module, shape, bias, || vec![in_halves(width, head_dim)])?.remove(0));
                }
                self.linear(module, shape, bias)
            };
            let modules = [(names.query, true), (names.key, true), (names.value, false)];
            modules.into_iter().zip(widths).map(load).collect::<Result<Vec<_>>>()?
        } else {
            let all = widths.into_iter().fold(0, usize::saturating_add);
            let rows = || match self.layout.qkv_by_head {
                true => rows_by_head(heads, head_dim),
                false => rows_by_kind(widths),
            };
            self.parts(names.qkv, [all, spec.hidden_size], bias, rows)?
        };
        linears.try_into().map_err(|_| Error::internal("queries, keys and values are three"))
    }

    /// The matrices of a feed-forward network: gate, if it has one, up and down.
    pub fn mlp(
        &self,
        names: &MlpNames<'_>,
        spec: &DenseSpec,
        hidden_size: usize,
    ) -> Result<(Option<Linear>, Linear, Linear)> {
        let DenseSpec { intermediate_size: inner, gated, bias, .. } = *spec;
        let down = self.linear(names.down, [hidden_size, inner], bias)?;
        if gated && !self.contains(names.gate) {
            let rows = || vec![(0..inner).collect(), (inner..2 * inner).collect()];
            let parts = self.parts(names.gate_up, [2 * inner, hidden_size], bias, rows)?;
            let parts: Result<[Linear; 2], _> = parts.try_into();
            let [gate, up] = parts.map_err(|_| Error::internal("gate and up are two"))?;
            return Ok((Some(gate), up, down));
        }
        let gate = if gated { Some(self.linear(names.gate, [inner, hidden_size], bias)?) } else { None };
        Ok((gate, self.linear(names.up, [inner, hidden_size], bias)?, down))
    }

    /// A linear map of an expert, out of the tensor that has those of all of them: of each, `parts` one after the other.
    pub fn expert(
        &self,
        module: &str,
        (experts, expert): (usize, usize),
        (parts, part): (usize, usize),
        [rows, columns]: [usize; 2],
    ) -> Result<Linear> {
        let all = self.checkpoint.matrix(&self.name(module, "weight"), &[experts, parts * rows, columns])?;
        let first = (expert * parts + part) * rows;
        let weight = self.place(all.take(first..first + rows))?;
        self.release(module);
        Ok(Linear::new(weight, None)?)
    }

    /// What is added to a router's scores for the choice of experts.
    pub fn router_biases(&self, experts: usize) -> Result<Vec<f32>> {
        let (module, parameter) = self.layout.names.router_biases;
        self.checkpoint.vector(&self.name(module, parameter), experts)
    }

    /// A norm of `len` numbers, of which `size` are normalised together. A `{}` in the name stands for one such piece.
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
        Ok(Norm::new(self.vector(weight)?, bias, size, spec))
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
