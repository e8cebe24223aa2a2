use candle_core::{DType, Device, Result, Tensor};

use super::{Batch, Spec};
use crate::Error;

/// Tokens in one block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// Keys and values of all layers, in slots that sequences hold block by block.
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// One layer's keys and values, `[slots, kv_heads * head_dim]` each.
pub struct LayerCache {
    pub keys: Tensor,
    pub values: Tensor,
}

impl KvCache {
    /// Room for `blocks` blocks. On the CPU the memory is reserved, and resident once used.
    pub fn new(spec: &Spec, blocks: usize, dtype: DType, device: &Device) -> crate::Result<Self> {
        let shape = (blocks * BLOCK_TOKENS, spec.num_kv_heads * spec.head_dim);
        let zeros = || zeros(shape, dtype, device);
        let layer = |_| Ok(LayerCache { keys: zeros()?, values: zeros()? });
        Ok(Self { layers: (0..spec.num_layers).map(layer).collect::<crate::Result<_>>()? })
    }

    /// The memory one block takes.
    pub fn block_bytes(spec: &Spec, dtype: DType) -> usize {
        // Sizes that no tensor has been held against yet may be absurd.
        let sizes = [2, spec.num_layers, spec.num_kv_heads, spec.head_dim, BLOCK_TOKENS, dtype.size_in_bytes()];
        sizes.into_iter().fold(1, usize::saturating_mul)
    }

    pub fn layers(&self) -> &[LayerCache] {
        &self.layers
    }
}

impl LayerCache {
    /// Stores the rows of a batch, `[rows, kv_heads * head_dim]`, in the slots of its sequences.
    pub fn store(&self, batch: &Batch, keys: &Tensor, values: &Tensor) -> Result<()> {
        for span in &batch.spans {
            let (mut row, end) = (span.start, span.start + span.len);
            while row < end {
                let position = batch.positions[row] as usize;
                let run = (BLOCK_TOKENS - position % BLOCK_TOKENS).min(end - row);
                let slot = span.slot(position, BLOCK_TOKENS);
                self.keys.slice_set(&keys.narrow(0, row, run)?, 0, slot)?;
                self.values.slice_set(&values.narrow(0, row, run)?, 0, slot)?;
                row += run;
            }
        }
        Ok(())
    }
}

/// Zeroed memory that is asked for, not demanded: a machine without it gives an error.
fn zeros((rows, columns): (usize, usize), dtype: DType, device: &Device) -> crate::Result<Tensor> {
    if dtype != DType::F32 || !device.is_cpu() {
        return Ok(Tensor::zeros((rows, columns), dtype, device)?);
    }
    let zeros = bytemuck::allocation::try_zeroed_vec::<f32>(rows * columns).map_err(|()| {
        Error::config("kv_cache_bytes", format!("the machine has no memory for a cache of {rows} tokens"))
    })?;
    Ok(Tensor::from_vec(zeros, (rows, columns), device)?)
}
