//! Activations for products with quantised matrices: rounded to 8 bits in the blocks that the weights have.

#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

use super::ggml::Format;
use crate::kernels::{
    Isa,
    elementwise::math::{greatest, rounded},
    memory::prefetch::prefetch,
    threads::parallel::filled,
};

/// The columns whose products an integer instruction sums.
pub const GROUP: usize = 4;
/// The tokens that a kernel takes through a panel at a time, at most.
pub const TILE: usize = 8;
/// Multiply-adds that are worth another thread.
pub const WORK: usize = 1 << 16;
/// Activations below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 13;

/// Activations so few that a thread can ask for all of them before it needs the first: those that other threads have made
/// come from far, one line of memory after another if it waits for each.
const PREFETCHED_LEN: usize = 1 << 15;

/// Activations in blocks of 8-bit codes.
pub struct QuantRows {
    columns: usize,
    block: usize,
    blocks: usize,
    bias: u8,
    tokens: usize,
    /// Of each tile of tokens the codes, `[groups, tokens]`, then the scales, `[blocks, tokens]`.
    tiles: Vec<[i8; GROUP]>,
}

/// What goes with a block of activations.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct BlockScale {
    pub scale: f32,
    /// The sum of the block's values, as quantised.
    pub sum: f32,
    /// What the bias of the weights adds to an integer dot product.
    pub start: i32,
}

// SAFETY: of three numbers of four bytes any bits are values, zeros too.
unsafe impl Zeroable for BlockScale {}
// SAFETY: as above, and there is nothing between them.
unsafe impl Pod for BlockScale {}

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
    /// Quantises rows of `columns` values for weights in `format`.
    pub fn quantize(x: &[f32], columns: usize, format: Format, isa: Isa) -> Self {
        let Format { block, bias, .. } = format;
        let (tokens, codes, all) = (x.len() / columns, columns / GROUP, words(columns, columns / block));
        let at_once = if x.len() < PARALLEL_LEN { tokens.div_ceil(TILE).max(1) } else { 1 };
        let tiles = filled(tokens * all, at_once * TILE * all, |part, out| {
            let x = &x[part * TILE * columns..];
            if tokens * columns <= PREFETCHED_LEN {
                prefetch(&x[..out.len() / all * columns]);
            }
            for (out, x) in out.chunks_mut(TILE * all).zip(x.chunks(TILE * columns)) {
                let (codes, scales) = out.split_at_mut(x.len() / columns * codes);
                compiled_for!(isa, quantize_tile(x, columns, format, codes, cast_slice_mut(scales)));
            }
        });
        Self { columns, block, blocks: columns / block, bias, tokens, tiles }
    }

    /// Asks for all that a thread is about to go through, if it is not much.
    pub fn prefetch(&self) {
        if self.tokens * self.columns <= PREFETCHED_LEN {
            prefetch(&self.tiles);
        }
    }

    /// Whether weights in `format` would have them quantised the same.
    pub fn is_for(&self, format: Format) -> bool {
        (self.block, self.bias) == (format.block, format.bias)
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
fn words(columns: usize, blocks: usize) -> usize {
    columns / GROUP + blocks * (size_of::<BlockScale>() / GROUP)
}

/// Quantises the tokens of a tile.
#[inline(always)]
pub fn quantize_tile(x: &[f32], columns: usize, format: Format, codes: &mut [[i8; GROUP]], scales: &mut [BlockScale]) {
    match format.block {
        16 => quantize_tile_by::<16>(x, columns, format.bias, codes, scales),
        _ => quantize_tile_by::<32>(x, columns, format.bias, codes, scales),
    }
}

/// As `quantize_tile`, in blocks of a length that compilers know.
#[inline(always)]
fn quantize_tile_by<const BLOCK: usize>(
    x: &[f32],
    columns: usize,
    bias: u8,
    codes: &mut [[i8; GROUP]],
    scales: &mut [BlockScale],
) {
    let tokens = x.len() / columns;
    for (token, x) in x.chunks_exact(columns).enumerate() {
        let to = codes.chunks_exact_mut(BLOCK / GROUP * tokens).zip(scales.chunks_exact_mut(tokens));
        for (x, (codes, scales)) in x.as_chunks::<BLOCK>().0.iter().zip(to) {
            let (quantized, scale) = quantize_block(x, bias);
            scales[token] = scale;
            for (codes, group) in codes.chunks_exact_mut(tokens).zip(quantized.as_chunks().0) {
                codes[token] = *group;
            }
        }
    }
}

/// Subtracts what `quantize_block` makes of each block of 32.
#[inline(always)]
pub fn keep_what_rounding_loses(x: &mut [f32]) {
    for x in x.as_chunks_mut::<32>().0 {
        let (codes, BlockScale { scale, .. }) = quantize_block(x, 0);
        for (x, code) in x.iter_mut().zip(codes) {
            *x = f32::from(code).mul_add(-scale, *x);
        }
    }
}

/// Rounds to the nearest of 255 steps between ± the greatest.
#[inline(always)]
fn quantize_block<const BLOCK: usize>(x: &[f32; BLOCK], bias: u8) -> ([i8; BLOCK], BlockScale) {
    // What is not a number gets into the scale.
    let greatest = greatest(x);
    let inverse = if greatest == 0.0 { 0.0 } else { 127.0 / greatest };
    let mut codes = [0; BLOCK];
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(x) {
        *code = rounded(value * inverse) as i8;
        sum += i32::from(*code);
    }
    let scale = greatest / 127.0;
    (codes, BlockScale { scale, sum: scale * sum as f32, start: -i32::from(bias) * sum })
}
