//! Keys and values in tensors, written in place.

use candle_core::{DType, Result, Tensor};

use super::{AttentionPlans, CandleOps, attention::attend};
use crate::{
    Error,
    decoder::{Batch, ops::AttentionHeads},
    kernels::attention::{BLOCK_TOKENS, Heads, KvDtype},
};

/// The keys and values of a layer, `[slots, num_kv_heads * head_dim]` each.
pub struct TensorCache {
    pub keys: Tensor,
    pub values: Tensor,
    /// See [`CandleOps::max_elements`].
    pub max_elements: usize,
}

impl TensorCache {
    /// A cache of zeros.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for types that tensors do not have.
    pub fn new(heads: Heads, blocks: usize, kv_dtype: KvDtype, ops: &CandleOps) -> crate::Result<Self> {
        let dtype = match kv_dtype {
            KvDtype::F32 => DType::F32,
            KvDtype::F16 => DType::F16,
            KvDtype::Bf16 => DType::BF16,
            KvDtype::Int8 => {
                let reason = "keys and values of 8 bits, which only models on the CPU can have";
                return Err(Error::config("kv_cache_type", reason));
            }
        };
        let shape = (blocks * BLOCK_TOKENS, heads.num_kv_heads * heads.head_dim);
        let zeros = || Tensor::zeros(shape, dtype, &ops.device);
        Ok(Self { keys: zeros()?, values: zeros()?, max_elements: ops.max_elements })
    }

    /// Stores the rows of a batch, `[rows, num_kv_heads * head_dim]`, in the slots of its sequences: one scatter each.
    pub fn store(&self, batch: &Batch, keys: &Tensor, values: &Tensor) -> Result<()> {
        let slots = batch.spans.iter().flat_map(|span| {
            let positions = span.context_len - span.len..span.context_len;
            positions.map(|position| span.slot(position, BLOCK_TOKENS) as u32)
        });
        let slots = Tensor::from_iter(slots, keys.device())?;
        let slots = slots.unsqueeze(1)?.broadcast_as(keys.shape())?.contiguous()?;
        for (cached, rows) in [(&self.keys, keys), (&self.values, values)] {
            cached.scatter_set(&slots, &rows.to_dtype(cached.dtype())?.contiguous()?, 0)?;
        }
        Ok(())
    }

    /// Attends to the cached keys and values of each row's sequence: `[rows, num_heads * head_dim]`.
    pub fn attend(&self, queries: &Tensor, heads: &AttentionHeads, batch: (&Batch, &AttentionPlans)) -> Result<Tensor> {
        attend(queries, self, heads, batch)
    }
}
