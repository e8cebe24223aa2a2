//! An adapter at work: its changes of the outputs of a model's linear maps.

use std::{fmt, sync::Arc};

use candle_core::{DType, Tensor};

use super::{LoraTarget, LoraTensors};
use crate::{
    Result,
    kernels::{
        Isa,
        dense::{DenseMatrix, ElementType},
        threads::parallel,
    },
    weights::ComputeTarget,
};

/// An adapter resolved for a model: its change of each of the model's [`LoraTargets`](super::LoraTargets).
#[derive(Default)]
pub struct LoraAdapter {
    /// One for each of the model's targets.
    deltas: Vec<Option<LoraDelta>>,
}

impl LoraAdapter {
    pub(super) fn new(deltas: Vec<Option<LoraDelta>>) -> Self {
        Self { deltas }
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.deltas.iter().flatten().map(LoraDelta::bytes).sum()
    }

    /// The change of a target, if there is one.
    pub(super) fn delta(&self, target: usize) -> Option<&LoraDelta> {
        self.deltas.get(target)?.as_ref()
    }
}

impl fmt::Debug for LoraAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoraAdapter").field("targets", &self.deltas.iter().flatten().count()).finish_non_exhaustive()
    }
}

/// How the output of a linear map changes: to `y + B A x`, or `factor * (y + B A x) + offset`.
pub enum LoraDelta {
    Kernels(KernelDelta),
    Tensors(TensorDelta),
}

/// A of a module, which the linear maps that are parts of the module share.
pub enum SharedA {
    Kernels(Arc<DenseMatrix>),
    Tensors(Tensor),
}

impl LoraDelta {
    /// `shared` is A of the module, made for its first target.
    pub(super) fn new(target: &LoraTarget, tensors: &LoraTensors, shared: &mut Option<SharedA>) -> Result<Self> {
        let [outputs, _] = target.weight.shape()?;
        let (rank, inputs, scale) = (tensors.rank, tensors.inputs(), tensors.scale as f32);
        let b = (0..outputs).flat_map(|row| &tensors.b[target.module_row(row) * rank..][..rank]).map(|b| scale * b);
        let magnitudes = DoraMagnitudes::new(target, tensors)?;
        Ok(match &target.compute {
            ComputeTarget::Kernels(isa) => {
                let a = match shared {
                    Some(SharedA::Kernels(a)) => a.clone(),
                    _ => Arc::new(panels(tensors.a.iter().copied(), rank, inputs)),
                };
                *shared = Some(SharedA::Kernels(a.clone()));
                Self::Kernels(KernelDelta { a, b: panels(b, outputs, rank), magnitudes, isa: *isa })
            }
            ComputeTarget::Tensors(device, dtype) => {
                let matrix = |values: Vec<f32>, rows, columns| {
                    Tensor::from_vec(values, (rows, columns), device)?.to_dtype(*dtype)?.t()
                };
                let a = match shared {
                    Some(SharedA::Tensors(a)) => a.clone(),
                    _ => matrix(tensors.a.clone(), rank, inputs)?,
                };
                *shared = Some(SharedA::Tensors(a.clone()));
                let vector = |values: Vec<f32>| Tensor::new(values, device)?.to_dtype(*dtype)?.unsqueeze(0);
                let magnitudes = magnitudes.map(|DoraMagnitudes { factors, offsets }| {
                    Ok::<_, candle_core::Error>((vector(factors)?, vector(offsets)?))
                });
                Self::Tensors(TensorDelta {
                    a,
                    b: matrix(b.collect(), outputs, rank)?,
                    magnitudes: magnitudes.transpose()?,
                })
            }
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Kernels(delta) => delta.a.bytes() + delta.b.bytes(),
            Self::Tensors(TensorDelta { a, b, .. }) => {
                [a, b].iter().map(|matrix| matrix.elem_count() * matrix.dtype().size_in_bytes()).sum()
            }
        }
    }
}

/// Scales outputs to the lengths of a DoRA magnitude, without the bias.
struct DoraMagnitudes {
    factors: Vec<f32>,
    offsets: Vec<f32>,
}

impl DoraMagnitudes {
    fn new(target: &LoraTarget, tensors: &LoraTensors) -> Result<Option<Self>> {
        let Some(magnitude) = &tensors.magnitude else { return Ok(None) };
        let norms = target.norms(tensors)?.into_iter().enumerate();
        let factors: Vec<f32> = norms.map(|(row, norm)| magnitude[target.module_row(row)] / norm).collect();
        let bias = target.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
        let bias = bias.unwrap_or_else(|| vec![0.0; factors.len()]);
        let offsets = factors.iter().zip(bias).map(|(factor, bias)| (1.0 - factor) * bias).collect();
        Ok(Some(Self { factors, offsets }))
    }
}

/// A change by the kernels of the CPU.
pub struct KernelDelta {
    /// `[rank, inputs]`
    a: Arc<DenseMatrix>,
    /// `[outputs, rank]`, with the scale in it.
    b: DenseMatrix,
    magnitudes: Option<DoraMagnitudes>,
    isa: Isa,
}

/// Rows that a thread takes at a time.
const CHUNK_ROWS: usize = 32;

impl KernelDelta {
    /// Changes some rows of the output `y`. A row's result does not depend on other rows.
    pub(super) fn apply(&self, rows: &[u32], x: &[f32], y: &mut [f32]) {
        let (inputs, outputs) = (self.a.columns, self.b.rows);
        parallel::for_chunks_mut(y, CHUNK_ROWS * outputs, |chunk, y| {
            let x = &x[chunk * CHUNK_ROWS * inputs..][..y.len() / outputs * inputs];
            let before = |end: usize| rows.partition_point(|row| (*row as usize) < end);
            let first = chunk * CHUNK_ROWS;
            let rows: Vec<usize> =
                rows[before(first)..before(first + CHUNK_ROWS)].iter().map(|row| *row as usize - first).collect();
            if rows.len() * inputs == x.len() {
                self.apply_to_chunk(&rows, x, y);
            } else if !rows.is_empty() {
                let x: Vec<f32> = rows.iter().flat_map(|row| &x[row * inputs..][..inputs]).copied().collect();
                self.apply_to_chunk(&rows, &x, y);
            }
        });
    }

    /// `x` are the inputs of these rows of `y`.
    fn apply_to_chunk(&self, rows: &[usize], x: &[f32], y: &mut [f32]) {
        let outputs = self.b.rows;
        let sums = self.b.multiply(&self.a.multiply(x, self.isa), self.isa);
        for (row, sums) in rows.iter().zip(sums.chunks_exact(outputs)) {
            let y = &mut y[row * outputs..][..outputs];
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
            if let Some(DoraMagnitudes { factors, offsets }) = &self.magnitudes {
                y.iter_mut().zip(factors).zip(offsets).for_each(|((y, factor), offset)| *y = factor * *y + offset);
            }
        }
    }
}

fn panels(values: impl Iterator<Item = f32>, rows: usize, columns: usize) -> DenseMatrix {
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    DenseMatrix::new(ElementType::F32, &bytes, rows, columns)
}

/// A change by tensor operations.
pub struct TensorDelta {
    /// `[inputs, rank]`
    a: Tensor,
    /// `[rank, outputs]`, with the scale in it.
    b: Tensor,
    /// Factors and offsets, `[1, outputs]` each.
    magnitudes: Option<(Tensor, Tensor)>,
}

impl TensorDelta {
    /// The output `y`, `[rows, outputs]`, with some rows changed.
    pub(super) fn apply(&self, rows: &Tensor, x: &Tensor, y: &Tensor) -> candle_core::Result<Tensor> {
        let change = x.index_select(rows, 0)?.matmul(&self.a)?.matmul(&self.b)?;
        let change = match &self.magnitudes {
            Some((factors, offsets)) => {
                let before = y.index_select(rows, 0)?;
                let after = (&before + change)?.broadcast_mul(factors)?.broadcast_add(offsets)?;
                (after - before)?
            }
            None => change,
        };
        y.index_add(rows, &change, 0)
    }
}
