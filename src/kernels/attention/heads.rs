//! The shape of an attention layer: its heads, and the block of the cache that its kernels read at a time.

use crate::kernels::layout::panels::LANES;

/// Tokens in one block of the cache: the scores of a block's keys are the lanes of a panel.
pub const BLOCK_TOKENS: usize = LANES;

/// The head layout of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a key/value head.
    pub fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// What a head's values take in whole panels.
    pub fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}
