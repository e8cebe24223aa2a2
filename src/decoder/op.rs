//! Operations on the rows of tensors by kernels of our own. Where a variable is among what they are computed from,
//! candle's backward pass goes through them, too.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use crate::kernels::{
    Isa,
    logits::{log_sum, scaled_softmax},
};

/// An operation on contiguous tensors, `[rows, …]`, that makes rows of `columns` numbers.
struct Op<F, B> {
    columns: usize,
    /// From the numbers of the tensors.
    forward: F,
    /// The gradients by each of them: from their numbers, those of the result and those of its gradient.
    backward: B,
}

/// `forward(x)`, whose gradient by `x` is `backward(x, result, gradient of the result)`.
pub fn unary<F, B>(x: &Tensor, columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: Fn(&[f32]) -> Result<Vec<f32>> + Send + Sync + 'static,
    B: Fn(&[f32], &[f32], &[f32]) -> Result<Vec<f32>> + Send + Sync + 'static,
{
    x.apply_op1(Op { columns, forward, backward })
}

/// `-ln softmax(logits)[target]` of each row, `[rows, 1]`.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (columns, targets, isa) = (logits.dim(1)?, targets.to_vec(), Isa::detect());
    let back = targets.clone();
    let forward = move |logits: &[f32]| {
        let rows = logits.par_chunks(columns).zip(&targets);
        Ok(rows.map(|(logits, target)| log_sum(logits, isa) - logits[*target as usize]).collect())
    };
    let backward = move |logits: &[f32], _: &[f32], gradient: &[f32]| {
        let mut by_logits = vec![0f32; logits.len()];
        let rows = by_logits.par_chunks_mut(columns).zip(logits.par_chunks(columns)).zip(&back).zip(gradient);
        rows.for_each(|(((by_logits, logits), target), gradient)| {
            scaled_softmax(logits, *gradient, by_logits, isa);
            by_logits[*target as usize] -= gradient;
        });
        Ok(by_logits)
    };
    unary(logits, 1, forward, backward)
}

/// What has this gradient by `x`; its value is of no use.
pub fn with_gradient(x: &Tensor, gradient: Tensor) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let back = move |_: &[f32], _: &[f32], _: &[f32]| with_f32(&gradient, <[f32]>::to_vec);
    unary(x, 1, move |_| Ok(vec![0.0; rows]), back)?.sum_all()
}

/// As `unary`, of two tensors.
pub fn binary<F, B>(tensors: [&Tensor; 2], columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: Fn([&[f32]; 2]) -> Result<Vec<f32>> + Send + Sync + 'static,
    B: Fn([&[f32]; 2], &[f32]) -> Result<[Vec<f32>; 2]> + Send + Sync + 'static,
{
    tensors[0].apply_op2(tensors[1], Op { columns, forward, backward })
}

/// As `unary`, of three tensors.
pub fn ternary<F, B>(tensors: [&Tensor; 3], columns: usize, forward: F, backward: B) -> Result<Tensor>
where
    F: Fn([&[f32]; 3]) -> Result<Vec<f32>> + Send + Sync + 'static,
    B: Fn([&[f32]; 3], &[f32], &[f32]) -> Result<[Vec<f32>; 3]> + Send + Sync + 'static,
{
    tensors[0].apply_op3(tensors[1], tensors[2], Op { columns, forward, backward })
}

impl<F, B> CustomOp1 for Op<F, B>
where
    F: Fn(&[f32]) -> Result<Vec<f32>>,
    B: Fn(&[f32], &[f32], &[f32]) -> Result<Vec<f32>>,
{
    fn name(&self) -> &'static str {
        "rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        rows((self.forward)(numbers(x, layout)?)?, self.columns)
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let by_x = with_all([x, result, &gradient.contiguous()?], |[x, y, gradient]| (self.backward)(x, y, gradient))?;
        like(x, by_x).map(Some)
    }
}

impl<F, B> CustomOp2 for Op<F, B>
where
    F: Fn([&[f32]; 2]) -> Result<Vec<f32>>,
    B: Fn([&[f32]; 2], &[f32]) -> Result<[Vec<f32>; 2]>,
{
    fn name(&self) -> &'static str {
        "rows of two"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<(CpuStorage, Shape)> {
        rows((self.forward)([numbers(x, lx)?, numbers(y, ly)?])?, self.columns)
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let by = with_all([x, y, &gradient.contiguous()?], |[x, y, gradient]| (self.backward)([x, y], gradient));
        let [by_x, by_y] = by?;
        Ok((Some(like(x, by_x)?), Some(like(y, by_y)?)))
    }
}

impl<F, B> CustomOp3 for Op<F, B>
where
    F: Fn([&[f32]; 3]) -> Result<Vec<f32>>,
    B: Fn([&[f32]; 3], &[f32], &[f32]) -> Result<[Vec<f32>; 3]>,
{
    fn name(&self) -> &'static str {
        "rows of three"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        y: &CpuStorage,
        ly: &Layout,
        z: &CpuStorage,
        lz: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        rows((self.forward)([numbers(x, lx)?, numbers(y, ly)?, numbers(z, lz)?])?, self.columns)
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [by_x, by_y, by_z] =
            with_all([x, y, z, result, &gradient.contiguous()?], |[x, y, z, result, gradient]| {
                (self.backward)([x, y, z], result, gradient)
            })?;
        Ok((Some(like(x, by_x)?), Some(like(y, by_y)?), Some(like(z, by_z)?)))
    }
}

/// Gives the numbers of a contiguous tensor on the CPU.
pub fn with_f32<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_all([x], |[x]| Ok(read(x)))
}

/// As `with_f32`, of several.
fn with_all<const N: usize, R>(tensors: [&Tensor; N], read: impl FnOnce([&[f32]; N]) -> Result<R>) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Storage::Cpu(storage) = &**storage else { candle_core::bail!("the tensor is not on the CPU") };
        *slice = numbers(storage, layout)?;
    }
    read(slices)
}

/// The numbers of a contiguous tensor.
pub fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("the tensor is not contiguous"),
    }
}

fn rows(numbers: Vec<f32>, columns: usize) -> Result<(CpuStorage, Shape)> {
    let rows = numbers.len() / columns;
    Ok((CpuStorage::F32(numbers), (rows, columns).into()))
}

fn like(x: &Tensor, numbers: Vec<f32>) -> Result<Tensor> {
    Tensor::from_vec(numbers, x.shape(), &Device::Cpu)
}
