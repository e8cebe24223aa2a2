//! Activations rounded to 8 bits, as products with quantized weights read them.

use bytemuck::{Pod, Zeroable, cast_slice};

use crate::kernels::memory::prefetch::prefetch;

/// The columns whose products an integer instruction sums.
pub const GROUP: usize = 4;
/// The tokens that a kernel takes through a panel at a time, at most.
pub const TILE: usize = 8;

/// Activations so few that a thread can ask for all of them before it needs the first: those that other threads have made
/// come from far, one line of memory after another if it waits for each.
pub const PREFETCHED_LEN: usize = 1 << 15;

/// Activations in blocks of 8-bit codes.
pub struct QuantRows {
    pub columns: usize,
    /// Columns of a block.
    pub block: usize,
    /// The bias of the weights' codes.
    pub bias: u8,
    pub blocks: usize,
    pub tokens: usize,
    /// Of each tile of tokens the codes, `[groups, tokens]`, then the scales, `[blocks, tokens]`.
    pub tiles: Vec<[i8; GROUP]>,
}

/// What goes with a block of activations.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub struct BlockScale {
    pub scale: f32,
    /// The sum of the block's values, as quantised.
    pub sum: f32,
    /// What the bias of the weights adds to an integer dot product.
    pub start: i32,
}

/// `T` tokens' activations.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only kernels of x86 look ahead by tiles"))]
pub struct ActivationTile<'a, const T: usize> {
    /// `[groups, tokens]`.
    pub codes: &'a [[[i8; GROUP]; T]],
    /// `[blocks, tokens]`.
    pub scales: &'a [[BlockScale; T]],
    /// Which tile it is, and of how many.
    pub index: usize,
    pub count: usize,
}

impl QuantRows {
    /// Asks for all that a thread is about to go through, if it is not much.
    pub fn prefetch(&self) {
        if self.tokens * self.columns <= PREFETCHED_LEN {
            prefetch(&self.tiles);
        }
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The tile, which is of `T` tokens.
    #[inline]
    pub fn tile<const T: usize>(&self, tile: usize) -> ActivationTile<'_, T> {
        let all = words(self.columns, self.blocks);
        let (codes, scales) = self.tiles[tile * TILE * all..][..T * all].split_at(T * self.columns / GROUP);
        let (codes, scales) = (codes.as_chunks().0, cast_slice(scales).as_chunks().0);
        ActivationTile { codes, scales, index: tile, count: self.tokens.div_ceil(TILE) }
    }
}

/// What a token's codes and scales take, as groups of codes.
pub fn words(columns: usize, blocks: usize) -> usize {
    columns / GROUP + blocks * (size_of::<BlockScale>() / GROUP)
}
