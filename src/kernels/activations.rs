//! Activations for products with quantised matrices: rounded to 8 bits in the blocks that the weights have.

use super::{Isa, ggml::Format, pieces};

/// The columns whose products an integer instruction sums.
pub const GROUP: usize = 4;
/// The tokens that a kernel takes through a panel at a time, at most.
pub const TILE: usize = 8;
/// Multiply-adds that are worth another thread.
pub const WORK: usize = 1 << 16;
/// Activations below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 13;

/// Activations in blocks of 8-bit codes, by tiles of tokens.
pub struct QuantRows {
    columns: usize,
    block: usize,
    bias: u8,
    codes: Vec<[i8; GROUP]>,
    scales: Vec<BlockScale>,
}

/// What goes with a block of activations.
#[derive(Clone, Copy, Default)]
pub struct BlockScale {
    pub scale: f32,
    /// The sum of the block's values, as quantised.
    pub sum: f32,
    /// What the bias of the weights adds to an integer dot product.
    pub start: i32,
}

/// `T` tokens' activations.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only kernels of x86 look ahead by tiles"))]
pub struct Tile<'a, const T: usize> {
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
        let (block, bias) = (format.block, format.bias);
        let mut codes = vec![[0; GROUP]; x.len() / GROUP];
        let mut scales = vec![BlockScale::default(); x.len() / block];
        let parts = codes.chunks_mut(TILE * columns / GROUP).zip(scales.chunks_mut(TILE * columns / block));
        let quantize = |x: &[f32], codes: &mut [_], scales: &mut [_]| {
            compiled_for!(isa, quantize_tile(x, columns, format, codes, scales));
        };
        let tiles = parts.zip(x.chunks(TILE * columns));
        if x.len() < PARALLEL_LEN {
            tiles.for_each(|((codes, scales), x)| quantize(x, codes, scales));
        } else {
            let mut tiles: Vec<_> = tiles.collect();
            pieces::for_each_mut(&mut tiles, |_, ((codes, scales), x)| quantize(x, codes, scales));
        }
        Self { columns, block, bias, codes, scales }
    }

    /// Whether weights in `format` would have them quantised the same.
    pub fn is_for(&self, format: Format) -> bool {
        (self.block, self.bias) == (format.block, format.bias)
    }

    pub fn tokens(&self) -> usize {
        self.codes.len() * GROUP / self.columns
    }

    pub fn blocks(&self) -> usize {
        self.columns / self.block
    }

    /// The tile, which is of `T` tokens.
    pub fn tile<const T: usize>(&self, tile: usize) -> Tile<'_, T> {
        let (groups, blocks) = (self.columns / GROUP, self.columns / self.block);
        Tile {
            codes: self.codes[tile * TILE * groups..][..T * groups].as_chunks().0,
            scales: self.scales[tile * TILE * blocks..][..T * blocks].as_chunks().0,
            index: tile,
            count: self.tokens().div_ceil(TILE),
        }
    }
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
    for (token, x) in x.chunks(columns).enumerate() {
        for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (quantized, scale) = quantize_block(x, bias);
            scales[block * tokens + token] = scale;
            let groups = codes[block * BLOCK / GROUP * tokens + token..].iter_mut().step_by(tokens);
            for (to, from) in groups.zip(quantized.as_chunks().0) {
                *to = *from;
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
    // Adding this leaves no bits for fractions, and the lowest bits are the sum as an integer.
    const ROUND: f32 = (3 << 22) as f32;
    // Magnitudes are in the order of their bits; a NaN is above all, and so gets into the scale.
    let greatest = x.iter().fold(0, |greatest, value| greatest.max(value.abs().to_bits()));
    let greatest = f32::from_bits(greatest);
    let inverse = if greatest == 0.0 { 0.0 } else { 127.0 / greatest };
    let mut codes = [0; BLOCK];
    let mut sum = 0;
    for (code, value) in codes.iter_mut().zip(x) {
        *code = (value * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*code);
    }
    let scale = greatest / 127.0;
    (codes, BlockScale { scale, sum: scale * sum as f32, start: -i32::from(bias) * sum })
}
