//! The shape of an attention layer: its heads, and the block of the cache that its kernels read at a time.

use crate::kernels::layout::panels::LANES;

/// Tokens of a cache block: as many as a panel has lanes, so that the scores of a block's keys are one panel.
pub const BLOCK_TOKENS: usize = LANES;

/// The head layout of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a KV head.
    pub fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// The size of a head, padded to whole panels.
    pub fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}
