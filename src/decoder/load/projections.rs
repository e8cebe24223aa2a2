//! The linear maps of attention and of feed-forward networks, in whichever matrices a checkpoint has them.

use std::{iter::StepBy, ops::Range};

use rayon::prelude::*;

use super::{
    Loader,
    fused_rows::{gate_up_rows, in_halves, rows_by_head, rows_by_kind},
};
use crate::{
    Error, Result,
    decoder::{
        layout::{Layout, MlpNames},
        linear::Linear,
        spec::{AttentionSpec, DenseSpec, ExpertsSpec},
    },
    kernels::elementwise::RopeStyle,
};

/// The linear maps of a feed-forward network: gate, if it has one, up and down.
pub type MlpLinears = (Option<Linear>, Linear, Linear);

impl Loader<'_> {
    /// The projections to queries, keys and values.
    pub fn qkv(&self, attention: &AttentionSpec, hidden_size: usize) -> Result<[Linear; 3]> {
        let names = &self.layout.names;
        let (head_dim, bias) = (attention.head_dim, attention.qkv_bias);
        let heads = [attention.num_heads, attention.num_kv_heads, attention.num_kv_heads];
        let widths = heads.map(|heads| heads.saturating_mul(head_dim));
        if self.layout.rope_style == RopeStyle::Interleaved && !head_dim.is_multiple_of(2) {
            let reason = format!("heads of {head_dim} have no two halves");
            return Err(Error::model(&self.names.checkpoint.path, reason));
        }
        let linears = if self.contains(names.query) {
            let load = |((module, turns), width): ((&str, bool), usize)| {
                let shape = [width, hidden_size];
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
            self.parts(names.qkv, [all, hidden_size], bias, rows)?
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
        let (stored, in_hub) = (parts(self.layout), parts(self.names.hub_layout));
        let hub_name = self.names.in_hub(module, stored.len() > 1);
        let part = |(rows, in_hub): (&Vec<usize>, Vec<usize>)| {
            let weight = self.place(weight.take(rows.iter().copied())?)?;
            let bias = biases.as_ref().map(|biases| self.vector(rows.iter().map(|row| biases[*row]).collect()));
            self.adaptable(hub_name.clone(), weight, bias.transpose()?, Some((in_hub, shape[0])))
        };
        stored.iter().zip(in_hub).map(part).collect()
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
        let name = self.names.tensor(module, "weight");
        let transposed = self.layout.experts_transposed && !name.ends_with(".weight");
        let all = self.names.checkpoint.matrix(&name, &if transposed { [experts, width, height] } else { shape })?;
        let biases = bias.then(|| self.biases(module, experts * height)).transpose()?;
        let linear = |expert: usize| {
            let rows_of_all = rows.clone().map(move |row| expert * height + row);
            let bias = biases.as_ref().map(|all| self.vector(rows_of_all.clone().map(|row| all[row]).collect()));
            let weight = match transposed {
                true => self.transposed(&name, all.take(expert * width..(expert + 1) * width)?)?.take(rows.clone())?,
                false => all.take(rows_of_all)?,
            };
            Ok(self.unadaptable(self.place(weight)?, bias.transpose()?))
        };
        (0..experts).into_par_iter().map(linear).collect()
    }
}
