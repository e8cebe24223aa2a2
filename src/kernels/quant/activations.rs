//! Activations rounded to 8 bits in the blocks that quantized weights have.

use bytemuck::cast_slice_mut;

use super::ggml::QuantFormat;
use crate::kernels::{
    Isa,
    elementwise::math::{max_abs, round_to_int},
    layout::activations::{BlockScale, GROUP, PREFETCHED_LEN, QuantRows, TILE, words},
    memory::prefetch::prefetch,
    multiversion::multiversion,
    threads::parallel::filled,
};

/// Multiply-adds that are worth another thread.
pub const WORK: usize = 1 << 16;
/// Activations below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 13;

impl QuantRows {
    /// Quantizes rows of `columns` values for weights in `format`.
    pub fn quantize(x: &[f32], columns: usize, format: QuantFormat, isa: Isa) -> Self {
        let QuantFormat { block, bias, .. } = format;
        let (tokens, codes, all) = (x.len() / columns, columns / GROUP, words(columns, columns / block));
        let at_once = if x.len() < PARALLEL_LEN { tokens.div_ceil(TILE).max(1) } else { 1 };
        let tiles = filled(tokens * all, at_once * TILE * all, |part, out| {
            let x = &x[part * TILE * columns..];
            if tokens * columns <= PREFETCHED_LEN {
                prefetch(&x[..out.len() / all * columns]);
            }
            for (out, x) in out.chunks_mut(TILE * all).zip(x.chunks(TILE * columns)) {
                let (codes, scales) = out.split_at_mut(x.len() / columns * codes);
                quantize_tile(x, columns, format, (codes, cast_slice_mut(scales)), isa);
            }
        });
        Self { columns, block, blocks: columns / block, bias, tokens, tiles }
    }

    /// Whether quantization for weights in `format` gives the same.
    pub fn is_for(&self, format: QuantFormat) -> bool {
        (self.block, self.bias) == (format.block, format.bias)
    }
}

multiversion! {
    /// Quantizes the tokens of a tile.
    fn quantize_tile(x: &[f32], columns: usize, format: QuantFormat, out: (&mut [[i8; GROUP]], &mut [BlockScale])) {
        match format.block {
            16 => quantize_tile_by::<16>(x, columns, format.bias, out),
            _ => quantize_tile_by::<32>(x, columns, format.bias, out),
        }
    }
}

/// [`quantize_tile`] for a block length that compilers know.
#[inline(always)]
fn quantize_tile_by<const BLOCK: usize>(
    x: &[f32],
    columns: usize,
    bias: u8,
    (codes, scales): (&mut [[i8; GROUP]], &mut [BlockScale]),
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

multiversion! {
    /// Replaces values by the errors of their quantization in blocks of 32.
    pub fn quantization_errors(x: &mut [f32]) {
        for x in x.as_chunks_mut::<32>().0 {
            let (codes, BlockScale { scale, .. }) = quantize_block(x, 0);
            for (x, code) in x.iter_mut().zip(codes) {
                *x = f32::from(code).mul_add(-scale, *x);
            }
        }
    }
}

/// Rounds to the nearest of 255 steps between ± the greatest magnitude. NaN in the block makes the scale NaN.
#[inline(always)]
fn quantize_block<const BLOCK: usize>(x: &[f32; BLOCK], bias: u8) -> ([i8; BLOCK], BlockScale) {
    let greatest = max_abs(x);
    let inverse = if greatest == 0.0 { 0.0 } else { 127.0 / greatest };
    let mut codes = [0; BLOCK];
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(x) {
        *code = round_to_int(value * inverse) as i8;
        sum += i32::from(*code);
    }
    let scale = greatest / 127.0;
    (codes, BlockScale { scale, sum: scale * sum as f32, start: -i32::from(bias) * sum })
}
