//! Differentiable operations on rows, from a function and its gradient.

use std::{cell::Cell, mem::take};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Storage, Tensor, Var};

use super::tape::note;
use crate::kernels::{
    Isa,
    elementwise::logits::{log_sum, scaled_softmax},
    threads::parallel,
};

/// `forward(x)`, rows of `columns` values, which is linear in `x`: `backward` maps the gradient of the result to that
/// of `x`.
pub fn linear<F, B>(x: &Tensor, columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: FnOnce(&[f32]) -> Result<Vec<f32>>,
    B: FnOnce(Vec<f32>) -> Result<Vec<f32>> + 'static,
{
    let result = rows_of(with_f32(x, forward)??, columns)?;
    note(&[x], &result, || move |gradient| Ok(vec![backward(gradient)?]));
    Ok(result)
}

/// `forward(x)`, rows of `columns` values: `backward(x, gradient of the result)` is the gradient of `x`.
pub fn unary<F, B>(x: &Tensor, columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: FnOnce(&[f32]) -> Result<Vec<f32>>,
    B: FnOnce(&[f32], &[f32]) -> Result<Vec<f32>> + 'static,
{
    let result = rows_of(with_f32(x, forward)??, columns)?;
    note(&[x], &result, || {
        let x = x.clone();
        move |gradient| Ok(vec![with_f32(&x, |x| backward(x, &gradient))??])
    });
    Ok(result)
}

/// [`unary`] of two tensors.
pub fn binary<F, B>(tensors: [&Tensor; 2], columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: FnOnce([&[f32]; 2]) -> Result<Vec<f32>>,
    B: FnOnce([&[f32]; 2], &[f32]) -> Result<[Vec<f32>; 2]> + 'static,
{
    let result = rows_of(with_all(tensors, forward)?, columns)?;
    note(&tensors, &result, || {
        let tensors = tensors.map(Tensor::clone);
        move |gradient| Ok(with_all(tensors.each_ref(), |values| backward(values, &gradient))?.into())
    });
    Ok(result)
}

/// [`unary`] of three tensors. Their gradients are `backward(values, result, gradient of the result)`.
pub fn ternary<F, B>(tensors: [&Tensor; 3], columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: FnOnce([&[f32]; 3]) -> Result<Vec<f32>>,
    B: FnOnce([&[f32]; 3], &[f32], &[f32]) -> Result<[Vec<f32>; 3]> + 'static,
{
    let result = rows_of(with_all(tensors, forward)?, columns)?;
    note(&tensors, &result, || {
        let (tensors, result) = (tensors.map(Tensor::clone), result.clone());
        move |gradient| {
            let back = |result: &[f32]| with_all(tensors.each_ref(), |values| backward(values, result, &gradient));
            Ok(with_f32(&result, back)??.into())
        }
    });
    Ok(result)
}

/// An operation of candle's tensor operations, which also compute its gradient: slow, for rare operations.
pub fn composed<const N: usize>(
    tensors: [&Tensor; N],
    compute: impl Fn([&Tensor; N]) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    let result = compute(tensors)?;
    note(&tensors, &result, || {
        let tensors = tensors.map(Tensor::clone);
        move |gradient| {
            let variables = tensors.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
            let result = compute(std::array::from_fn(|i| variables[i].as_tensor()))?;
            let gradient = Tensor::from_vec(gradient, result.shape(), &Device::Cpu)?;
            let found = (result * gradient)?.backward()?;
            let by = |variable: &Var| match found.get(variable) {
                Some(gradient) => gradient.flatten_all()?.to_vec1(),
                None => Ok(vec![0.0; variable.elem_count()]),
            };
            variables.iter().map(by).collect()
        }
    });
    Ok(result)
}

/// `-ln softmax(logits)[target]` of each row, `[rows, 1]`. On the way back the logits, which nothing else has then,
/// become their gradient.
pub fn cross_entropy(logits: Tensor, targets: &[u32], isa: Isa) -> Result<Tensor> {
    let columns = logits.dim(1)?;
    let losses = with_f32(&logits, |logits| {
        let rows: Vec<_> = logits.chunks(columns).zip(targets).collect();
        parallel::map(&rows, |_, (logits, target)| log_sum(logits, isa) - logits[**target as usize])
    })?;
    let losses = rows_of(losses, 1)?;
    note(&[&logits], &losses, || {
        let (logits, targets) = (logits.clone(), targets.to_vec());
        move |gradient| {
            let mut grad_logits = taken(logits)?;
            parallel::for_chunks_mut(&mut grad_logits, columns, |row, logits| {
                scaled_softmax(logits, gradient[row], isa);
                logits[targets[row] as usize] -= gradient[row];
            });
            Ok(vec![grad_logits])
        }
    });
    Ok(losses)
}

/// Takes the values out of a tensor; clones of it are empty afterwards.
fn taken(x: Tensor) -> Result<Vec<f32>> {
    struct Take(Cell<Vec<f32>>);

    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "take"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
            if let CpuStorage::F32(values) = storage {
                self.0.set(take(values));
            }
            Ok(())
        }
    }

    let values = Take(Cell::default());
    x.inplace_op1(&values)?;
    Ok(values.0.into_inner())
}

/// Gives the values of a contiguous tensor on the CPU.
pub fn with_f32<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_all([x], |[x]| Ok(read(x)))
}

/// [`with_f32`] of several tensors.
fn with_all<const N: usize, R>(tensors: [&Tensor; N], read: impl FnOnce([&[f32]; N]) -> Result<R>) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Storage::Cpu(storage) = &**storage else { candle_core::bail!("the tensor is not on the CPU") };
        *slice = values(storage, layout)?;
    }
    read(slices)
}

/// A copy of the values of a tensor.
pub fn values_of(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// The values of a contiguous tensor.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("the tensor is not contiguous"),
    }
}

/// Rows of `columns` values as a tensor.
pub fn rows_of(values: Vec<f32>, columns: usize) -> Result<Tensor> {
    let rows = values.len() / columns;
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}
