//! The rows of a batch that adapters change.

use std::{ops::Range, sync::OnceLock};

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor};

use super::{LoraAdapter, TrainableLora, lora_adapter::LoraDelta};
use crate::autograd::values;

/// The rows of a tensor that adapters change.
#[derive(Default)]
pub struct AdaptedRows<'a> {
    groups: Vec<AdapterGroup<'a>>,
    /// The adapter in training, which changes all rows.
    trained: Option<&'a TrainableLora>,
}

impl<'a> AdaptedRows<'a> {
    /// The rows of a batch, given each sequence's adapter and rows in order.
    pub fn of(sequences: impl Iterator<Item = (Option<&'a LoraAdapter>, Range<u32>)>) -> Self {
        let mut groups: Vec<AdapterGroup<'a>> = Vec::new();
        for (adapter, rows) in sequences {
            let Some(adapter) = adapter else { continue };
            match groups.iter_mut().find(|group| std::ptr::eq(group.adapter, adapter)) {
                Some(group) => group.rows.extend(rows),
                None => groups.push(AdapterGroup::new(adapter, rows.collect())),
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

    /// The adapted rows of a tensor that has only `rows`.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let among = |group: &AdapterGroup<'a>| {
            let chosen = rows.iter().zip(0u32..).filter(|(row, _)| group.rows.binary_search(row).is_ok());
            AdapterGroup::new(group.adapter, chosen.map(|(_, at)| at).collect())
        };
        let groups = self.groups.iter().map(among).filter(|group| !group.rows.is_empty()).collect();
        Self { groups, trained: self.trained }
    }

    /// Changes the output `y` that the linear map of a target has for `x`: in place, unless an adapter is being trained
    /// or tensor operations compute it.
    pub fn apply(&self, target: usize, x: &Tensor, y: Tensor) -> Result<Tensor> {
        if let Some(trained) = self.trained {
            return trained.apply(target, x, y);
        }
        let (mut y, mut in_memory) = (y, false);
        for group in &self.groups {
            match group.adapter.delta(target) {
                Some(LoraDelta::Tensors(delta)) => y = delta.apply(group.index(x.device())?, x, &y)?,
                Some(LoraDelta::Kernels(_)) => in_memory = true,
                None => {}
            }
        }
        if in_memory {
            y.inplace_op2(x, &AtTarget { rows: self, target })?;
        }
        Ok(y)
    }

    /// [`apply`](Self::apply) to values in memory, of adapters that are not being trained.
    pub fn apply_to(&self, target: usize, x: &[f32], y: &mut [f32]) {
        for group in &self.groups {
            if let Some(LoraDelta::Kernels(delta)) = group.adapter.delta(target) {
                delta.apply(&group.rows, x, y);
            }
        }
    }
}

/// An adapter with its rows, in order.
struct AdapterGroup<'a> {
    adapter: &'a LoraAdapter,
    rows: Vec<u32>,
    /// The rows as a tensor.
    index: OnceLock<Tensor>,
}

impl<'a> AdapterGroup<'a> {
    fn new(adapter: &'a LoraAdapter, rows: Vec<u32>) -> Self {
        Self { adapter, rows, index: OnceLock::new() }
    }

    fn index(&self, device: &Device) -> Result<&Tensor> {
        if self.index.get().is_none() {
            let _ = self.index.set(Tensor::new(self.rows.as_slice(), device)?);
        }
        self.index.get().ok_or_else(|| candle_core::Error::Msg("rows of an adapter have no index".into()))
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

    fn cpu_fwd(&self, y: &mut CpuStorage, y_layout: &Layout, x: &CpuStorage, x_layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(y), Some((start, end))) = (y, y_layout.contiguous_offsets()) else {
            candle_core::bail!("the tensor is not contiguous, or not of 32 bits")
        };
        self.rows.apply_to(self.target, values(x, x_layout)?, &mut y[start..end]);
        Ok(())
    }
}
