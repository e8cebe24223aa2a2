//! Products with quantised matrices: weights as 4- or 8-bit codes with a scale, and perhaps an offset, for
//! each block of 32; activations quantised to 8 bits in blocks of 32; integer dot products between them.

use std::ops::Range;

use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

use super::{
    Isa,
    ggml::{BLOCK, Format},
};

/// Rows of weights that lie side by side, one for each lane of a vector.
pub const LANES: usize = 16;
/// Columns whose codes lie side by side in a lane.
pub const GROUP: usize = 4;
/// Groups in a block.
pub const GROUPS: usize = BLOCK / GROUP;
/// Tokens that a kernel takes through a tile of weights at a time.
pub const TOKENS: usize = 8;
/// Bytes of a tile's codes in a block, if each takes one.
pub const TILE_BLOCK: usize = LANES * BLOCK;

/// A matrix, `[rows, columns]`, in tiles of 16 rows.
///
/// A tile is its blocks from left to right; a block is its groups of 4 columns from left to right; a
/// group is 4 codes of each row, `[16, 4]`. Codes of four bits share bytes with those of four groups
/// further on: the low halves are the first groups. Rows that are not there have scales of zero.
pub struct QuantMatrix {
    pub rows: usize,
    pub columns: usize,
    format: Format,
    codes: Vec<u8>,
    scales: Floats,
    offsets: Option<Floats>,
}

/// Scales or offsets, `[tiles, blocks, 16]`, or `[tiles, blocks, 2, 16]` if the halves of a block have
/// their own.
enum Floats {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

/// A part of [`Floats`].
#[derive(Clone, Copy)]
pub enum FloatsRef<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

/// 16 rows of weights.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    pub format: Format,
    pub blocks: usize,
    pub codes: &'a [u8],
    pub scales: FloatsRef<'a>,
    pub offsets: Option<FloatsRef<'a>>,
}

/// Activations in blocks of 8-bit codes.
struct QuantRows {
    columns: usize,
    /// `[rows, columns]`.
    codes: Vec<i8>,
    /// `[rows, columns / BLOCK]`.
    scales: Vec<f32>,
    /// The sums of the codes of each half of a block, `[rows, columns / BLOCK]`.
    sums: Vec<[i32; 2]>,
}

/// One row of activations.
#[derive(Clone, Copy)]
pub struct QuantRow<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub sums: &'a [[i32; 2]],
}

impl Floats {
    fn zeros(len: usize, half_precision: bool) -> Self {
        if half_precision { Self::F16(vec![f16::ZERO; len]) } else { Self::F32(vec![0.0; len]) }
    }

    fn set(&mut self, at: usize, value: f32) {
        match self {
            Self::F16(floats) => floats[at] = f16::from_f32(value),
            Self::F32(floats) => floats[at] = value,
        }
    }

    fn part(&self, start: usize, len: usize) -> FloatsRef<'_> {
        match self {
            Self::F16(floats) => FloatsRef::F16(&floats[start..start + len]),
            Self::F32(floats) => FloatsRef::F32(&floats[start..start + len]),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F16(floats) => size_of_val(&floats[..]),
            Self::F32(floats) => size_of_val(&floats[..]),
        }
    }
}

impl FloatsRef<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::F16(floats) => floats.len(),
            Self::F32(floats) => floats.len(),
        }
    }

    fn get(&self, at: usize) -> f32 {
        match self {
            Self::F16(floats) => floats[at].to_f32(),
            Self::F32(floats) => floats[at],
        }
    }
}

impl Tile<'_> {
    /// Scales of a row in a block.
    pub fn parts(&self) -> usize {
        if self.format.halves { 2 } else { 1 }
    }

    /// The code of a row, and of a column in a block.
    fn code(&self, block: usize, row: usize, column: usize) -> i32 {
        let (group, within) = (column / GROUP, row * GROUP + column % GROUP);
        if !self.format.nibbles {
            return i32::from(self.codes[block * TILE_BLOCK + group * LANES * GROUP + within]);
        }
        let byte = self.codes[block * TILE_BLOCK / 2 + group % (GROUPS / 2) * LANES * GROUP + within];
        i32::from(if group < GROUPS / 2 { byte & 15 } else { byte >> 4 })
    }

    /// Where the scale of a row is.
    fn at(&self, block: usize, half: usize, row: usize) -> usize {
        (block * self.parts() + half % self.parts()) * LANES + row
    }
}

impl QuantMatrix {
    /// Takes over a matrix in one of ggml's formats, if it is one these kernels are for.
    ///
    /// `bytes` are the rows as ggml stores them; each row is whole blocks.
    pub fn from_ggml(dtype: GgmlDType, bytes: &[u8], rows: usize, columns: usize) -> Option<Self> {
        let format = Format::of(dtype)?;
        let (tiles, blocks) = (rows.div_ceil(LANES), columns / BLOCK);
        let parts = if format.halves { 2 } else { 1 };
        let floats = || Floats::zeros(tiles * blocks * parts * LANES, format.half_precision);
        let (mut scales, mut offsets) = (floats(), format.offsets.then(floats));
        let block_bytes = if format.nibbles { TILE_BLOCK / 2 } else { TILE_BLOCK };
        let mut codes = vec![0u8; tiles * blocks * block_bytes];
        let row_bytes = columns / dtype.block_size() * dtype.type_size();
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            let (tile, lane) = (row / LANES, row % LANES);
            for (block, stored) in format.blocks(bytes).enumerate() {
                let block = tile * blocks + block;
                for half in 0..parts {
                    let at = (block * parts + half) * LANES + lane;
                    scales.set(at, stored.scales[half]);
                    if let Some(offsets) = &mut offsets {
                        offsets.set(at, stored.offsets[half]);
                    }
                }
                let codes = &mut codes[block * block_bytes..][..block_bytes];
                for (group, four) in stored.codes.chunks_exact(GROUP).enumerate() {
                    let (group, shift) = match format.nibbles {
                        true => (group % (GROUPS / 2), group / (GROUPS / 2) * 4),
                        false => (group, 0),
                    };
                    let place = &mut codes[(group * LANES + lane) * GROUP..][..GROUP];
                    place.iter_mut().zip(four).for_each(|(place, code)| *place |= code << shift);
                }
            }
        }
        Some(Self { rows, columns, format, codes, scales, offsets })
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes() + self.offsets.as_ref().map_or(0, Floats::bytes)
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let (tile, lane) = (self.tile(row / LANES), row % LANES);
        let value = |column: usize| {
            let (block, column) = (column / BLOCK, column % BLOCK);
            let at = tile.at(block, column / (BLOCK / 2), lane);
            let code = tile.code(block, lane, column) - i32::from(self.format.zero);
            code as f32 * tile.scales.get(at) + tile.offsets.map_or(0.0, |offsets| offsets.get(at))
        };
        (0..self.columns).map(value).collect()
    }

    fn tile(&self, tile: usize) -> Tile<'_> {
        let blocks = self.columns / BLOCK;
        let code_bytes = blocks * if self.format.nibbles { TILE_BLOCK / 2 } else { TILE_BLOCK };
        let floats = blocks * LANES * if self.format.halves { 2 } else { 1 };
        Tile {
            format: self.format,
            blocks,
            codes: &self.codes[tile * code_bytes..][..code_bytes],
            scales: self.scales.part(tile * floats, floats),
            offsets: self.offsets.as_ref().map(|offsets| offsets.part(tile * floats, floats)),
        }
    }

    /// `x Wᵀ`: from `[tokens, columns]` to `[tokens, rows]`.
    pub fn multiply(&self, x: &[f32], isa: Isa) -> Vec<f32> {
        let tokens = x.len() / self.columns;
        let x = QuantRows::quantize(x, self.columns, isa);
        let threads = rayon::current_num_threads();
        if tokens >= threads * TOKENS {
            // Each thread takes some tokens through all weights.
            let share = tokens.div_ceil(threads).next_multiple_of(TOKENS);
            let mut out = vec![0f32; tokens * self.rows];
            out.par_chunks_mut(share * self.rows).enumerate().for_each(|(i, out)| {
                let first = i * share;
                self.multiply_part(0..self.rows, first..(first + share).min(tokens), &x, isa, out);
            });
            return out;
        }
        // Each thread takes all tokens through some rows of weights.
        let strip = self.rows.div_ceil(LANES).div_ceil(2 * threads) * LANES;
        let strip_rows = |i: usize| i * strip..((i + 1) * strip).min(self.rows);
        let mut strips = vec![0f32; tokens * self.rows];
        strips.par_chunks_mut(strip * tokens).enumerate().for_each(|(i, out)| {
            self.multiply_part(strip_rows(i), 0..tokens, &x, isa, out);
        });
        if tokens == 1 {
            return strips;
        }
        let mut out = vec![0f32; strips.len()];
        for (i, part) in strips.chunks(strip * tokens).enumerate() {
            for (out, part) in out.chunks_mut(self.rows).zip(part.chunks(strip_rows(i).len())) {
                out[strip_rows(i)].copy_from_slice(part);
            }
        }
        out
    }

    /// Some rows, whole tiles of them but for the last, with some tokens: `[tokens, rows]`.
    fn multiply_part(&self, rows: Range<usize>, tokens: Range<usize>, x: &QuantRows, isa: Isa, out: &mut [f32]) {
        for first_row in rows.clone().step_by(LANES) {
            let tile = self.tile(first_row / LANES);
            let lanes = LANES.min(rows.end - first_row);
            for first in tokens.clone().step_by(TOKENS) {
                let count = TOKENS.min(tokens.end - first);
                // A short tile repeats its last token; a token's result does not depend on its tile.
                let token = |t: usize| x.row(first + t.min(count - 1));
                let sums = if count == 1 {
                    let [sums] = multiply_tile(isa, &tile, &[token(0)]);
                    [sums; TOKENS]
                } else {
                    multiply_tile(isa, &tile, &std::array::from_fn::<_, TOKENS, _>(token))
                };
                for (t, sums) in sums.iter().take(count).enumerate() {
                    let at = (first + t - tokens.start) * rows.len() + first_row - rows.start;
                    out[at..at + lanes].copy_from_slice(&sums[..lanes]);
                }
            }
        }
    }
}

impl QuantRows {
    /// Quantises rows of `columns` values to the nearest of 255 steps between ± the greatest.
    fn quantize(x: &[f32], columns: usize, isa: Isa) -> Self {
        let blocks = x.len() / BLOCK;
        let (mut codes, mut scales, mut sums) = (vec![0i8; x.len()], vec![0f32; blocks], vec![[0; 2]; blocks]);
        compiled_for!(isa, quantize(x, &mut codes, &mut scales, &mut sums));
        Self { columns, codes, scales, sums }
    }

    fn row(&self, row: usize) -> QuantRow<'_> {
        let blocks = self.columns / BLOCK;
        QuantRow {
            codes: &self.codes[row * self.columns..][..self.columns],
            scales: &self.scales[row * blocks..][..blocks],
            sums: &self.sums[row * blocks..][..blocks],
        }
    }
}

#[inline(always)]
pub fn quantize(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [[i32; 2]]) {
    // Adding this leaves the nearest integer in the low bits, ties to even.
    const ROUND: f32 = 12_582_912.0;
    let blocks = x.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK));
    for ((x, codes), (scale, sums)) in blocks.zip(scales.iter_mut().zip(sums)) {
        let mut lanes = [0f32; 8];
        for x in x.chunks_exact(8) {
            for (lane, x) in lanes.iter_mut().zip(x) {
                *lane = if x.abs() > *lane { x.abs() } else { *lane };
            }
        }
        let greatest = lanes.into_iter().fold(0f32, f32::max);
        let inverse = if greatest == 0.0 { 0.0 } else { 127.0 / greatest };
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUND).to_bits() as i8;
        }
        *scale = greatest / 127.0;
        let (low, high) = codes.split_at(BLOCK / 2);
        *sums = [low, high].map(|half| half.iter().map(|code| i32::from(*code)).sum());
    }
}

/// The dot products of 16 rows of weights with `T` tokens.
fn multiply_tile<const T: usize>(isa: Isa, tile: &Tile<'_>, x: &[QuantRow<'_>; T]) -> [[f32; LANES]; T] {
    match isa {
        Isa::Scalar => x.map(|x| std::array::from_fn(|row| scalar(tile, row, x))),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::x86::quantized::avx2(tile, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => super::x86::quantized::avx512_vnni(tile, x),
    }
}

/// The oracle of the other paths, and the way of machines without them: integer sums of blocks or of
/// their halves, multiplied and added from left to right, offsets after scales.
fn scalar(tile: &Tile<'_>, row: usize, x: QuantRow<'_>) -> f32 {
    let (parts, part_len) = (tile.parts(), BLOCK / tile.parts());
    let mut sum = 0f32;
    for block in 0..tile.blocks {
        let x_codes = &x.codes[block * BLOCK..][..BLOCK];
        let x_sum = |part: usize| match parts {
            1 => x.sums[block][0] + x.sums[block][1],
            _ => x.sums[block][part],
        };
        for part in 0..parts {
            let columns = part * part_len..(part + 1) * part_len;
            let products = columns.map(|column| tile.code(block, row, column) * i32::from(x_codes[column]));
            let product = products.sum::<i32>() - i32::from(tile.format.zero) * x_sum(part);
            let scale = tile.scales.get(tile.at(block, part, row)) * x.scales[block];
            sum = (product as f32).mul_add(scale, sum);
        }
        for part in 0..parts {
            if let Some(offsets) = tile.offsets {
                let x_sum = x_sum(part) as f32 * x.scales[block];
                sum = offsets.get(tile.at(block, part, row)).mul_add(x_sum, sum);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, quantized::QTensor};

    use super::*;

    const FORMATS: [GgmlDType; 10] = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    fn noise(len: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn matrix(dtype: GgmlDType, rows: usize, columns: usize) -> (QuantMatrix, Vec<f32>) {
        let values = Tensor::from_vec(noise(rows * columns, 7), (rows, columns), &Device::Cpu).unwrap();
        let stored = QTensor::quantize(&values, dtype).unwrap();
        let exact = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (QuantMatrix::from_ggml(dtype, &stored.data().unwrap(), rows, columns).unwrap(), exact)
    }

    #[test]
    fn rows_are_what_candle_makes_of_them() {
        for dtype in FORMATS {
            let (matrix, exact) = matrix(dtype, 19, 512);
            for row in 0..19 {
                for (ours, theirs) in matrix.row(row).iter().zip(&exact[row * 512..]) {
                    assert!((ours - theirs).abs() < 1e-6, "{dtype:?}: {ours} {theirs}");
                }
            }
        }
    }

    #[test]
    fn products_are_near_exact_ones() {
        for dtype in FORMATS {
            let (rows, columns, tokens) = (37, 256, 6);
            let (matrix, exact) = matrix(dtype, rows, columns);
            let x = noise(tokens * columns, 9);
            let ours = matrix.multiply(&x, Isa::detect());
            for (token, x) in x.chunks(columns).enumerate() {
                for (row, weights) in exact.chunks(columns).enumerate() {
                    let expected: f32 = weights.iter().zip(x).map(|(weight, x)| weight * x).sum();
                    let got = ours[token * rows + row];
                    assert!((got - expected).abs() < 0.15, "{dtype:?}: {got} for {expected}");
                }
            }
        }
    }

    fn check_bits(name: &str, matrix: &QuantMatrix, x: &[f32]) {
        let alone = |token| matrix.multiply(token, Isa::Scalar);
        let expected: Vec<f32> = x.chunks(matrix.columns).flat_map(alone).collect();
        for isa in Isa::available() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let tokens = x.len() / matrix.columns;
                let got = pool.install(|| matrix.multiply(x, isa));
                assert!(got == expected, "{name} {isa:?}, {tokens} tokens, {threads} threads");
            }
        }
    }

    #[test]
    fn every_path_batch_and_number_of_threads_gives_the_same_bits() {
        for dtype in FORMATS {
            for (rows, tokens) in [(33, 1), (70, 7), (16, 8), (50, 30)] {
                let (matrix, _) = matrix(dtype, rows, 256);
                check_bits(&format!("{dtype:?}"), &matrix, &noise(tokens * 256, 11));
            }
        }
    }

    #[test]
    fn extreme_codes_give_the_same_bits() {
        for (dtype, code) in
            [(GgmlDType::Q8_0, 0x80), (GgmlDType::Q8_0, 0x7f), (GgmlDType::Q6K, 0xff), (GgmlDType::Q5_1, 0xff)]
        {
            let block = dtype.type_size();
            let mut bytes = vec![code; 20 * 256 / dtype.block_size() * block];
            for block in bytes.chunks_exact_mut(block) {
                // Floats at the places where formats have them.
                for at in [0, 2, block.len() - 2] {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
                }
            }
            let matrix = QuantMatrix::from_ggml(dtype, &bytes, 20, 256).unwrap();
            check_bits(&format!("{dtype:?} {code}"), &matrix, &[vec![1.0; 256], vec![-1.0; 256]].concat());
        }
    }
}
