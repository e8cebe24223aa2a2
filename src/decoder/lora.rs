//! Adapters at work: what is added to linear maps for the sequences that ask for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{CpuStorage, DType, InplaceOp2, Layout as TensorLayout, Tensor};
use rayon::prelude::*;

use super::{Batch, differentiable::values, layout::Layout, trainable_lora::TrainableLora};
use crate::{
    Error, Result,
    kernels::{
        Isa,
        dense::{DenseMatrix, ElementType},
        threads::parallel,
    },
    weights::{AdapterFile, LoraTensors, Matrix},
};

/// A linear map that adapters may change.
pub struct LoraTarget {
    /// The layer it is in, if any.
    pub layer: Option<usize>,
    /// The name of its module in the Hugging Face model.
    pub module: String,
    /// Which rows of the module's output it makes, if not all in order.
    pub rows: Option<Vec<usize>>,
    /// Rows of the module's output.
    pub module_outputs: usize,
    pub weight: Matrix,
    pub bias: Option<Tensor>,
    pub isa: Isa,
}

impl LoraTarget {
    /// The lengths of the weight's rows with B and A of an adapter in them.
    pub fn norms(&self, tensors: &LoraTensors) -> Result<Vec<f32>> {
        let [outputs, _] = self.weight.shape()?;
        let norm = |row: usize| Ok(tensors.row_norm(self.module_row(row), self.weight.row(row)?));
        (0..outputs).into_par_iter().map(norm).collect()
    }

    /// Which row of the module's output a row is.
    pub fn module_row(&self, row: usize) -> usize {
        self.rows.as_ref().map_or(row, |rows| rows[row])
    }
}

/// Where a model's linear maps are noted as they are loaded.
#[derive(Default)]
pub struct LoraTargetsBuilder(Mutex<Vec<LoraTarget>>);

impl LoraTargetsBuilder {
    /// Notes a target and gives its index.
    pub fn add(&self, target: LoraTarget) -> usize {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.push(target);
        targets.len() - 1
    }

    /// All of them, of a model that calls modules as `layout` does.
    pub fn finish(self, layout: &Layout) -> LoraTargets {
        let targets = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut modules: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, target) in targets.iter().enumerate() {
            modules.entry(target.module.clone()).or_default().push(index);
        }
        LoraTargets { targets, modules, layout: layout.clone() }
    }
}

/// The linear maps of a model that adapters may change.
pub struct LoraTargets {
    targets: Vec<LoraTarget>,
    /// The targets of each module.
    modules: BTreeMap<String, Vec<usize>>,
    layout: Layout,
}

impl LoraTargets {
    /// Makes an adapter for this model of what a file has.
    pub fn resolve(&self, file: &AdapterFile) -> Result<LoraAdapter> {
        let mut deltas: Vec<Option<LoraDelta>> = self.targets.iter().map(|_| None).collect();
        for (tensors, indices) in self.matched(file)? {
            let a = Arc::new(panels(tensors.a.iter().copied(), tensors.rank, tensors.inputs()));
            for &index in indices {
                deltas[index] = Some(LoraDelta::new(&self.targets[index], tensors, a.clone())?);
            }
        }
        Ok(LoraAdapter { deltas })
    }

    /// The modules of a file, in order, with the targets that each of them changes.
    pub fn matched<'a>(&self, file: &'a AdapterFile) -> Result<Vec<(&'a LoraTensors, &[usize])>> {
        let mut seen = BTreeSet::new();
        let matched = |(module, tensors): (&String, &'a LoraTensors)| {
            let bad = |reason: String| Error::model(&file.path, format!("module {module} {reason}"));
            let indices = self.find(module).ok_or_else(|| {
                let known = self.short_names().into_iter().collect::<Vec<_>>().join(", ");
                bad(format!("is no linear map of this model that can be changed; they are called {known}"))
            })?;
            for &index in indices {
                let target = &self.targets[index];
                let [_, inputs] = target.weight.shape()?;
                let (theirs, ours) = ([tensors.outputs(), tensors.inputs()], [target.module_outputs, inputs]);
                if theirs != ours {
                    return Err(bad(format!("is of {theirs:?} in the adapter and of {ours:?} in the model")));
                }
                if !seen.insert(index) {
                    return Err(bad("is there under two names".into()));
                }
            }
            Ok((tensors, indices))
        };
        file.modules.iter().map(matched).collect()
    }

    /// The targets of a module, whichever of the model's names it has.
    fn find(&self, module: &str) -> Option<&[usize]> {
        self.layout.usual_names(module).iter().find_map(|name| self.modules.get(name)).map(Vec::as_slice)
    }

    /// What adapters' files call a module.
    pub fn full_name(&self, module: &str) -> String {
        self.layout.full_name(module)
    }

    pub fn get(&self, index: usize) -> &LoraTarget {
        &self.targets[index]
    }

    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// The modules, each with the indices of its targets.
    pub fn modules(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.modules.iter().map(|(module, targets)| (module.as_str(), targets.as_slice()))
    }

    /// The last parts of the modules' names.
    pub fn short_names(&self) -> BTreeSet<&str> {
        self.modules.keys().filter_map(|module| module.rsplit('.').next()).collect()
    }
}

/// What an adapter makes of a model's linear maps.
#[derive(Default)]
pub struct LoraAdapter {
    /// One for each of the model's targets.
    deltas: Vec<Option<LoraDelta>>,
}

impl LoraAdapter {
    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.deltas.iter().flatten().map(|delta| delta.a.bytes() + delta.b.bytes()).sum()
    }
}

impl fmt::Debug for LoraAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoraAdapter").field("targets", &self.deltas.iter().flatten().count()).finish_non_exhaustive()
    }
}

/// How the output of a linear map changes: to `y + B A x`, or `factor * (y + B A x) + offset`.
struct LoraDelta {
    /// `[rank, inputs]`, shared by the linear maps that are one module.
    a: Arc<DenseMatrix>,
    /// `[outputs, rank]`, with the scale in it.
    b: DenseMatrix,
    magnitudes: Option<DoraMagnitudes>,
    isa: Isa,
}

/// Rows that a thread takes at a time.
const CHUNK_ROWS: usize = 32;

/// What brings rows to their lengths, the bias left alone.
struct DoraMagnitudes {
    factors: Vec<f32>,
    offsets: Vec<f32>,
}

impl LoraDelta {
    fn new(target: &LoraTarget, tensors: &LoraTensors, a: Arc<DenseMatrix>) -> Result<Self> {
        let [outputs, _] = target.weight.shape()?;
        let (rank, scale) = (tensors.rank, tensors.scale as f32);
        let b = (0..outputs).flat_map(|row| &tensors.b[target.module_row(row) * rank..][..rank]).map(|b| scale * b);
        let magnitudes = tensors.magnitude.as_ref().map(|magnitude| {
            let norms = target.norms(tensors)?.into_iter().enumerate();
            let factors: Vec<f32> = norms.map(|(row, norm)| magnitude[target.module_row(row)] / norm).collect();
            let bias = target.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
            let bias = bias.unwrap_or_else(|| vec![0.0; outputs]);
            let offsets = factors.iter().zip(bias).map(|(factor, bias)| (1.0 - factor) * bias).collect();
            Ok::<_, Error>(DoraMagnitudes { factors, offsets })
        });
        Ok(Self { a, b: panels(b, outputs, rank), magnitudes: magnitudes.transpose()?, isa: target.isa })
    }

    /// Changes some rows of the output `y`. What becomes of a row does not depend on the others.
    fn apply(&self, rows: &[u32], x: &[f32], y: &mut [f32]) {
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

/// The rows of a tensor that adapters change.
#[derive(Default)]
pub struct AdaptedRows<'a> {
    /// Each adapter with its rows, in order.
    groups: Vec<(&'a LoraAdapter, Vec<u32>)>,
    /// What changes all rows.
    trained: Option<&'a TrainableLora>,
}

impl<'a> AdaptedRows<'a> {
    /// Those of a batch.
    pub fn of(batch: &'a Batch) -> Self {
        let mut groups: Vec<(&LoraAdapter, Vec<u32>)> = Vec::new();
        for span in &batch.spans {
            let Some(adapter) = span.adapter.as_deref() else { continue };
            let rows = span.start as u32..(span.start + span.len) as u32;
            match groups.iter_mut().find(|(other, _)| std::ptr::eq(*other, adapter)) {
                Some((_, others)) => others.extend(rows),
                None => groups.push((adapter, rows.collect())),
            }
        }
        Self { groups, trained: None }
    }

    /// All rows, by an adapter that is being trained.
    pub fn all(trained: &'a TrainableLora) -> Self {
        Self { groups: Vec::new(), trained: Some(trained) }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.trained.is_none()
    }

    /// Whether products of these rows may be in bfloat16.
    pub fn are_rounded(&self) -> bool {
        self.trained.is_some_and(TrainableLora::is_rounded)
    }

    /// Those of a tensor that has some of the rows.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let among = |(adapter, of): &(&'a LoraAdapter, Vec<u32>)| {
            let chosen = rows.iter().zip(0u32..).filter(|(row, _)| of.binary_search(row).is_ok());
            (*adapter, chosen.map(|(_, at)| at).collect::<Vec<_>>())
        };
        let groups = self.groups.iter().map(among).filter(|(_, rows)| !rows.is_empty()).collect();
        Self { groups, trained: self.trained }
    }

    /// Changes the output `y` that the linear map of a target has for `x`, in place if nothing is being trained.
    pub fn apply(&self, target: usize, x: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
        if let Some(trained) = self.trained {
            return trained.apply(target, x, y);
        }
        y.inplace_op2(x, &AtTarget { rows: self, target })?;
        Ok(y)
    }

    /// As `apply`, to values in memory, of adapters that are not being trained.
    pub fn apply_to(&self, target: usize, x: &[f32], y: &mut [f32]) {
        for (adapter, rows) in &self.groups {
            if let Some(delta) = adapter.deltas.get(target).and_then(Option::as_ref) {
                delta.apply(rows, x, y);
            }
        }
    }
}

struct AtTarget<'a> {
    rows: &'a AdaptedRows<'a>,
    target: usize,
}

impl InplaceOp2 for AtTarget<'_> {
    fn name(&self) -> &'static str {
        "adapters"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &TensorLayout,
        x: &CpuStorage,
        x_layout: &TensorLayout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(y), Some((start, end))) = (y, y_layout.contiguous_offsets()) else {
            candle_core::bail!("the tensor is not contiguous, or not of 32 bits")
        };
        self.rows.apply_to(self.target, values(x, x_layout)?, &mut y[start..end]);
        Ok(())
    }
}
