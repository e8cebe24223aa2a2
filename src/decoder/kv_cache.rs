use candle_core::{DType, Device, Result, Tensor};

use super::{Batch, Spec, differentiable::with_f32};
use crate::{
    Error,
    kernels::{
        Isa,
        attention::{KvDtype, MicroBatches, PagedCache, SharedCache},
    },
};

pub use crate::kernels::attention::BLOCK_TOKENS;

/// Keys and values of all layers, in slots that sequences hold block by block.
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// Where a pass finds the keys and values of a layer.
#[derive(Clone, Copy)]
pub enum Cached<'a> {
    Layer(&'a LayerCache),
    /// What the sequences of a part of a batch hold.
    Part(&'a SharedCache<'a>, usize),
}

/// One layer's keys and values.
pub enum LayerCache {
    /// For the CPU's own kernels.
    Paged(PagedCache),
    /// For the tensor operations of other devices: `[slots, num_kv_heads * head_dim]` each.
    Tensors { keys: Tensor, values: Tensor },
}

impl KvCache {
    /// Room for `blocks` blocks. On the CPU the memory is reserved, and resident once used.
    pub fn new(spec: &Spec, blocks: usize, kv_dtype: KvDtype, device: &Device) -> crate::Result<Self> {
        let layer = |_| LayerCache::new(spec, blocks, kv_dtype, device);
        Ok(Self { layers: (0..spec.num_layers()).map(layer).collect::<crate::Result<_>>()? })
    }

    /// The memory one block takes.
    pub fn block_bytes(spec: &Spec, kv_dtype: KvDtype) -> usize {
        // Sizes that no tensor has been held against yet may be absurd.
        kv_dtype.block_bytes(spec.heads()).saturating_mul(spec.num_layers())
    }

    pub fn layers(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }

    /// The layers for threads that store these parts and read what is stored; `None` for devices without our own kernels.
    pub fn shared<'a>(&'a mut self, parts: &'a MicroBatches<'a>) -> Option<Vec<SharedCache<'a>>> {
        let shared = |layer: &'a mut LayerCache| match layer {
            LayerCache::Paged(cache) => Some(cache.shared(parts)),
            LayerCache::Tensors { .. } => None,
        };
        self.layers.iter_mut().map(shared).collect()
    }
}

impl LayerCache {
    fn new(spec: &Spec, blocks: usize, kv_dtype: KvDtype, device: &Device) -> crate::Result<Self> {
        if !device.is_cpu() {
            let dtype = match kv_dtype {
                KvDtype::F32 => DType::F32,
                KvDtype::F16 => DType::F16,
                KvDtype::Bf16 => DType::BF16,
                KvDtype::Int8 => {
                    let reason = "keys and values of 8 bits, which only models on the CPU can have";
                    return Err(Error::config("kv_cache_type", reason));
                }
            };
            let heads = spec.heads();
            let shape = (blocks * BLOCK_TOKENS, heads.num_kv_heads * heads.head_dim);
            let zeros = || Tensor::zeros(shape, dtype, device);
            return Ok(Self::Tensors { keys: zeros()?, values: zeros()? });
        }
        let cache = PagedCache::new(spec.heads(), blocks, kv_dtype).ok_or_else(|| {
            let reason = format!("the machine has no memory for a cache of {} tokens", blocks * BLOCK_TOKENS);
            Error::config("kv_cache_bytes", reason)
        })?;
        Ok(Self::Paged(cache))
    }

    /// Stores the rows of a batch, `[rows, num_kv_heads * head_dim]`, in the slots of its sequences.
    pub fn store(&mut self, batch: &Batch, keys: &Tensor, values: &Tensor, isa: Isa) -> Result<()> {
        match self {
            Self::Paged(cache) => {
                let sequences = batch.sequences();
                with_f32(keys, |keys| with_f32(values, |values| cache.store(&sequences, keys, values, isa)))?
            }
            Self::Tensors { keys: cached_keys, values: cached_values } => {
                set_slots(cached_keys, batch, keys)?;
                set_slots(cached_values, batch, values)
            }
        }
    }
}

fn set_slots(cached: &Tensor, batch: &Batch, rows: &Tensor) -> Result<()> {
    let rows = rows.to_dtype(cached.dtype())?;
    for span in &batch.spans {
        let (mut row, end) = (span.start, span.start + span.len);
        while row < end {
            let position = batch.positions[row] as usize;
            let run = (BLOCK_TOKENS - position % BLOCK_TOKENS).min(end - row);
            cached.slice_set(&rows.narrow(0, row, run)?, 0, span.slot(position, BLOCK_TOKENS))?;
            row += run;
        }
    }
    Ok(())
}
