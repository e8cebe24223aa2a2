//! Products with weights in the layouts of the kernels.

use std::sync::Arc;

use candle_core::{Error, Result, Tensor};

use crate::{
    autograd::{self, is_tracked, rows_of, with_f32},
    kernels::{
        Isa,
        dense::{DenseMatrix, transposed},
        elementwise::Activation,
        quant::{self, QuantMatrix},
    },
    weights::WeightMatrix,
};

/// `x Wᵀ` with panels of floats.
pub fn multiply_panels(x: &Tensor, matrix: &Arc<DenseMatrix>, rounded: bool, isa: Isa) -> Result<Tensor> {
    let back = matrix.clone();
    let forward = |x: &[f32]| Ok(panels(x, matrix, rounded, isa));
    autograd::linear(x, matrix.rows, forward, move |gradient| match rounded {
        true => Ok(transposed::multiply_rounded(&gradient, &*back, isa)),
        false => Ok(transposed::multiply(&gradient, &*back, isa)),
    })
}

/// `x Wᵀ` with quantized blocks.
pub fn multiply_packed(x: &Tensor, matrix: &Arc<QuantMatrix>, rounded: bool, isa: Isa) -> Result<Tensor> {
    let back = matrix.clone();
    let forward = |x: &[f32]| Ok(matrix.multiply(x, isa));
    autograd::linear(x, matrix.rows, forward, move |gradient| Ok(back.multiply_transposed(&gradient, rounded, isa)))
}

pub fn panels_to_vec(x: &Tensor, matrix: &DenseMatrix, rounded: bool, isa: Isa) -> Result<Vec<f32>> {
    with_f32(x, |x| panels(x, matrix, rounded, isa))
}

pub fn packed_to_vec(x: &Tensor, matrix: &QuantMatrix, isa: Isa) -> Result<Vec<f32>> {
    with_f32(x, |x| matrix.multiply(x, isa))
}

fn panels(x: &[f32], matrix: &DenseMatrix, rounded: bool, isa: Isa) -> Vec<f32> {
    match rounded {
        true => matrix.multiply_rounded(x, isa),
        false => matrix.multiply(x, isa),
    }
}

/// The products of quantized matrices with one input, which is quantized once for all.
pub fn multiply_all<const N: usize>(x: &Tensor, weights: [&WeightMatrix; N], isa: Isa) -> Result<Option<[Tensor; N]>> {
    let Some(matrices) = all_packed(x, weights) else { return Ok(None) };
    let products = with_f32(x, |x| quant::multiply_all(matrices, x, isa))?;
    let products = products.into_iter().zip(matrices).map(|(values, matrix)| rows_of(values, matrix.rows));
    let products = products.collect::<Result<Vec<_>>>()?;
    products.try_into().map(Some).map_err(|_| Error::Msg("as many results as there are products".into()))
}

/// `activation(gate(x)) * up(x)` of quantized matrices.
pub fn multiply_gated(
    x: &Tensor,
    gate_and_up: [&WeightMatrix; 2],
    activation: Activation,
    isa: Isa,
) -> Result<Option<Tensor>> {
    let Some(matrices) = all_packed(x, gate_and_up) else { return Ok(None) };
    match with_f32(x, |x| quant::multiply_gated(matrices, x, activation, isa))? {
        Some(values) => rows_of(values, matrices[0].rows).map(Some),
        None => Ok(None),
    }
}

/// The matrices, if all are quantized blocks and no gradients are asked for.
fn all_packed<'a, const N: usize>(x: &Tensor, weights: [&'a WeightMatrix; N]) -> Option<[&'a QuantMatrix; N]> {
    let packed = weights.iter().map_while(|weight| match weight {
        WeightMatrix::Packed(matrix) if !is_tracked(x) => Some(&**matrix),
        _ => None,
    });
    packed.collect::<Vec<_>>().try_into().ok()
}

/// Rows of a matrix by index.
pub fn embed(indices: &Tensor, row: impl Fn(usize) -> Vec<f32>, columns: usize) -> Result<Tensor> {
    rows_of(indices.to_vec1::<u32>()?.into_iter().flat_map(|index| row(index as usize)).collect(), columns)
}
