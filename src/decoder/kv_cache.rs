//! The state of sequences between passes: keys and values in blocks, recurrent states in slots.

use candle_core::{Result, Tensor, bail};

use super::{
    Batch, Spec,
    ops::{Ops, TensorCache},
    spec::{LayerCachePlan, LayerSpec},
    state_cache::StateCache,
};
use crate::{
    Error,
    autograd::with_f32,
    kernels::{
        Isa,
        attention::{KvDtype, MicroBatches, PagedCache, SharedCache},
    },
};

pub use crate::kernels::attention::BLOCK_TOKENS;

/// Blocks and state slots that a cache holds.
#[derive(Debug, Clone, Copy)]
pub struct CacheSize {
    /// Blocks of [`BLOCK_TOKENS`] tokens.
    pub blocks: usize,
    /// Recurrent states; none in models without recurrent layers.
    pub state_slots: usize,
}

/// The caches of all layers.
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// One layer's part of the cache.
pub enum LayerCache {
    /// Keys and values for the CPU's own kernels.
    Paged(PagedCache),
    /// Keys and values for tensor operations on any device.
    Tensors(TensorCache),
    /// Recurrent states.
    States(StateCache),
}

/// One layer's part of the cache while threads share it.
pub enum SharedLayerCache<'a> {
    Paged(SharedCache<'a>),
    States(&'a StateCache),
}

/// Where a layer stores its rows.
pub enum CacheWriter<'a> {
    Layer(&'a mut LayerCache),
    /// Of one part of a batch.
    Part {
        cache: &'a SharedLayerCache<'a>,
        part: usize,
        /// Waits until the parts before have stored theirs in this layer; false if they never will.
        wait: &'a dyn Fn() -> bool,
    },
}

/// Where a layer finds keys and values.
#[derive(Clone, Copy)]
pub enum CacheReader<'a> {
    Layer(&'a LayerCache),
    /// Of one part of a batch.
    Part(&'a SharedLayerCache<'a>, usize),
}

impl KvCache {
    /// On the CPU memory is reserved, and resident once used.
    pub fn new(spec: &Spec, size: CacheSize, kv_dtype: KvDtype, ops: &Ops) -> crate::Result<Self> {
        let layer = |layer: &LayerSpec| LayerCache::new(layer.mixer.cache(), size, kv_dtype, ops);
        Ok(Self { layers: spec.layers.iter().map(layer).collect::<crate::Result<_>>()? })
    }

    pub fn layers(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }

    /// The layers for threads that store these parts and read what is stored; `None` for devices without our own
    /// kernels.
    pub fn shared<'a>(&'a mut self, parts: &'a MicroBatches<'a>) -> Option<Vec<SharedLayerCache<'a>>> {
        let shared = |layer: &'a mut LayerCache| match layer {
            LayerCache::Paged(cache) => Some(SharedLayerCache::Paged(cache.shared(parts))),
            LayerCache::Tensors(_) => None,
            LayerCache::States(states) => Some(SharedLayerCache::States(states)),
        };
        self.layers.iter_mut().map(shared).collect()
    }
}

impl CacheWriter<'_> {
    /// Stores the keys and values of a batch, `[rows, num_kv_heads * head_dim]`, in the blocks of its sequences.
    pub fn store(self, batch: &Batch, keys: &Tensor, values: &Tensor, isa: Isa) -> Result<()> {
        match self {
            Self::Layer(layer) => layer.store(batch, keys, values, isa),
            Self::Part { cache: SharedLayerCache::Paged(cache), part, .. } => {
                with_f32(keys, |keys| with_f32(values, |values| cache.store(part, keys, values, isa)))?
            }
            Self::Part { .. } => bail!("a layer without keys and values was given some"),
        }
    }
}

impl<'a> CacheWriter<'a> {
    /// The states of a recurrent layer, once the rows before these have left theirs.
    pub fn states(self) -> Result<&'a StateCache> {
        match self {
            Self::Layer(LayerCache::States(states)) => Ok(states),
            Self::Part { cache: SharedLayerCache::States(states), wait, .. } => match wait() {
                true => Ok(states),
                false => bail!("the rows before have failed"),
            },
            _ => bail!("a layer without states was asked for them"),
        }
    }
}

impl LayerCache {
    fn new(plan: LayerCachePlan, size: CacheSize, kv_dtype: KvDtype, ops: &Ops) -> crate::Result<Self> {
        Ok(match (plan, ops) {
            (LayerCachePlan::States(len), _) => Self::States(StateCache::new(len, size.state_slots)),
            (LayerCachePlan::Paged(heads), Ops::Cpu(_)) => {
                let cache = PagedCache::new(heads, size.blocks, kv_dtype).ok_or_else(|| {
                    let reason =
                        format!("the machine has no memory for a cache of {} tokens", size.blocks * BLOCK_TOKENS);
                    Error::config("kv_cache_bytes", reason)
                })?;
                Self::Paged(cache)
            }
            (LayerCachePlan::Paged(heads), Ops::Candle(ops)) => {
                Self::Tensors(TensorCache::new(heads, size.blocks, kv_dtype, ops)?)
            }
        })
    }

    /// Stores the rows of a batch, `[rows, num_kv_heads * head_dim]`, in the blocks of its sequences.
    fn store(&mut self, batch: &Batch, keys: &Tensor, values: &Tensor, isa: Isa) -> Result<()> {
        match self {
            Self::Paged(cache) => {
                let sequences = batch.sequences();
                with_f32(keys, |keys| with_f32(values, |values| cache.store(&sequences, keys, values, isa)))?
            }
            Self::Tensors(cache) => cache.store(batch, keys, values),
            Self::States(_) => bail!("a layer without keys and values was given some"),
        }
    }
}
