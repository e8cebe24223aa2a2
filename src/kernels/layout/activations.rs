//! Activations rounded to 8 bits, as products with quantized weights read them.

use bytemuck::{Pod, Zeroable, cast_slice};

use crate::kernels::memory::prefetch::prefetch;

/// Columns whose products one integer instruction sums.
pub const GROUP: usize = 4;
/// Tokens of a tile, at most: a kernel takes a tile through a panel at a time.
pub const TILE: usize = 8;

/// Number of activations up to which a thread prefetches all of them. They were written by other threads, and without
/// prefetching their cache lines arrive one after another.
pub const PREFETCHED_LEN: usize = 1 << 15;

/// Rows of activations in blocks of 8-bit codes.
pub struct QuantRows {
    pub columns: usize,
    /// Columns of a block.
    pub block: usize,
    /// The bias of the weights' codes.
    pub bias: u8,
    pub blocks: usize,
    pub tokens: usize,
    /// For each tile of tokens the codes, `[groups, tokens]`, then the [`BlockScale`]s, `[blocks, tokens]`.
    pub tiles: Vec<[i8; GROUP]>,
}

/// The scale of a block of activations.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub struct BlockScale {
    pub scale: f32,
    /// The sum of the block's quantized values.
    pub sum: f32,
    /// The start of integer dot products: minus the weights' bias times the sum of the codes.
    pub start: i32,
}

/// The activations of `T` tokens.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only kernels of x86 look ahead by tiles"))]
pub struct ActivationTile<'a, const T: usize> {
    /// `[groups, tokens]`.
    pub codes: &'a [[[i8; GROUP]; T]],
    /// `[blocks, tokens]`.
    pub scales: &'a [[BlockScale; T]],
    /// The index of the tile among `count` tiles.
    pub index: usize,
    pub count: usize,
}

impl QuantRows {
    /// Prefetches the activations if they are few.
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

    /// A tile of `T` tokens.
    #[inline]
    pub fn tile<const T: usize>(&self, tile: usize) -> ActivationTile<'_, T> {
        let all = words(self.columns, self.blocks);
        let (codes, scales) = self.tiles[tile * TILE * all..][..T * all].split_at(T * self.columns / GROUP);
        let (codes, scales) = (codes.as_chunks().0, cast_slice(scales).as_chunks().0);
        ActivationTile { codes, scales, index: tile, count: self.tokens.div_ceil(TILE) }
    }
}

/// The size of a token's codes and scales, in groups of codes.
pub fn words(columns: usize, blocks: usize) -> usize {
    columns / GROUP + blocks * (size_of::<BlockScale>() / GROUP)
}
