//! Products with quantised matrices: weights in blocks of 32 with a scale and an offset, activations
//! quantised to 8 bits in blocks of 32, integer dot products between them.

use candle_core::quantized::GgmlDType;
use half::f16;
use rayon::prelude::*;

use super::{Isa, dot};

/// Weights, and activations, that share a scale.
pub const BLOCK: usize = 32;
/// Tokens a kernel takes through a row of weights at a time.
pub const TILE: usize = 4;
/// Rows of weights that one thread takes at a time.
const ROWS: usize = 32;
/// Running sums of a dot product. Lane `l` sums the products `4l..4l + 4` of every block.
pub const LANES: usize = 8;

/// A matrix, `[rows, columns]`, of codes with `weight = scale * code + offset` in each block.
pub struct QuantMatrix {
    pub rows: usize,
    pub columns: usize,
    codes: Codes,
    /// `[rows, columns / BLOCK]`, as are the offsets.
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

/// The codes of all blocks, row by row.
enum Codes {
    /// 0 to 15; in a block's 16 bytes the low halves are its first 16 codes, the high ones its last.
    Nibbles(Vec<u8>),
    /// -127 to 127.
    Bytes(Vec<i8>),
}

/// The codes of one row.
#[derive(Clone, Copy)]
pub enum RowCodes<'a> {
    Nibbles(&'a [u8]),
    Bytes(&'a [i8]),
}

/// Activations in blocks of 8-bit codes.
pub struct QuantRows {
    columns: usize,
    /// `[rows, columns]`.
    codes: Vec<i8>,
    /// `[rows, columns / BLOCK]`.
    scales: Vec<f32>,
    /// The sum of each block's values, `[rows, columns / BLOCK]`.
    sums: Vec<f32>,
}

/// One row of activations.
#[derive(Clone, Copy)]
pub struct QuantRow<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
}

impl QuantMatrix {
    /// Takes over a matrix in one of ggml's formats, if it is one these kernels are for.
    ///
    /// `bytes` are the rows as ggml stores them; each row is whole blocks.
    pub fn from_ggml(dtype: GgmlDType, bytes: &[u8], rows: usize, columns: usize) -> Option<Self> {
        let blocks = rows * columns / BLOCK;
        let mut matrix =
            Self { rows, columns, codes: Codes::Nibbles(Vec::new()), scales: Vec::new(), offsets: Vec::new() };
        matrix.scales.reserve_exact(blocks);
        matrix.offsets.reserve_exact(blocks);
        let mut nibbles = Vec::new();
        let mut codes = Vec::new();
        match dtype {
            GgmlDType::Q4_0 | GgmlDType::Q4_1 => nibbles.reserve_exact(blocks * BLOCK / 2),
            GgmlDType::Q5_0 | GgmlDType::Q5_1 | GgmlDType::Q8_0 => codes.reserve_exact(blocks * BLOCK),
            _ => return None,
        }
        for block in bytes.chunks_exact(dtype.type_size()) {
            let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            let scale = half(0);
            let offset = match dtype {
                GgmlDType::Q4_0 => {
                    nibbles.extend_from_slice(&block[2..]);
                    -8.0 * scale
                }
                GgmlDType::Q4_1 => {
                    nibbles.extend_from_slice(&block[4..]);
                    half(2)
                }
                GgmlDType::Q5_0 => {
                    codes.extend(five_bit_codes(&block[2..6], &block[6..]).map(|code| code - 16));
                    0.0
                }
                GgmlDType::Q5_1 => {
                    codes.extend(five_bit_codes(&block[4..8], &block[8..]));
                    half(2)
                }
                _ => {
                    // -128 does not occur in files of quantisers that round to the nearest code.
                    codes.extend(block[2..].iter().map(|code| (*code as i8).max(-127)));
                    0.0
                }
            };
            matrix.scales.push(scale);
            matrix.offsets.push(offset);
        }
        matrix.codes = if codes.is_empty() { Codes::Nibbles(nibbles) } else { Codes::Bytes(codes) };
        Some(matrix)
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        let codes = match &self.codes {
            Codes::Nibbles(codes) => codes.len(),
            Codes::Bytes(codes) => codes.len(),
        };
        codes + size_of::<f32>() * (self.scales.len() + self.offsets.len())
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let (codes, scales, offsets) = self.row_parts(row);
        let code = |at: usize| match codes {
            RowCodes::Nibbles(codes) => {
                let byte = codes[at / BLOCK * (BLOCK / 2) + at % (BLOCK / 2)];
                f32::from(if at % BLOCK < BLOCK / 2 { byte & 15 } else { byte >> 4 })
            }
            RowCodes::Bytes(codes) => f32::from(codes[at]),
        };
        (0..self.columns).map(|at| code(at) * scales[at / BLOCK] + offsets[at / BLOCK]).collect()
    }

    fn row_parts(&self, row: usize) -> (RowCodes<'_>, &[f32], &[f32]) {
        let blocks = self.columns / BLOCK;
        let range = row * blocks..(row + 1) * blocks;
        let codes = match &self.codes {
            Codes::Nibbles(codes) => RowCodes::Nibbles(&codes[row * self.columns / 2..][..self.columns / 2]),
            Codes::Bytes(codes) => RowCodes::Bytes(&codes[row * self.columns..][..self.columns]),
        };
        (codes, &self.scales[range.clone()], &self.offsets[range])
    }

    /// `x Wᵀ`: from `[tokens, columns]` to `[tokens, rows]`.
    pub fn multiply(&self, x: &[f32], isa: Isa) -> Vec<f32> {
        let x = QuantRows::quantize(x, self.columns);
        let tokens = x.codes.len() / self.columns;
        // By rows of weights first, so that threads write to pieces of their own.
        let mut by_row = vec![0f32; self.rows * tokens];
        by_row.par_chunks_mut(ROWS * tokens).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_mut(tokens).enumerate() {
                self.multiply_row(chunk * ROWS + i, &x, isa, out);
            }
        });
        if tokens == 1 {
            return by_row;
        }
        let mut out = vec![0f32; by_row.len()];
        out.par_chunks_mut(self.rows).enumerate().for_each(|(token, out)| {
            for (row, out) in out.iter_mut().enumerate() {
                *out = by_row[row * tokens + token];
            }
        });
        out
    }

    /// One row of weights with all tokens.
    fn multiply_row(&self, row: usize, x: &QuantRows, isa: Isa, out: &mut [f32]) {
        let (codes, scales, offsets) = self.row_parts(row);
        for (tile, out) in out.chunks_mut(TILE).enumerate() {
            // A short tile repeats its last token; a token's result does not depend on its tile.
            let token = |t: usize| tile * TILE + t.min(out.len() - 1);
            let dots = if out.len() == 1 {
                [dots(isa, codes, scales, &[x.row(token(0))])[0]; TILE]
            } else {
                dots(isa, codes, scales, &std::array::from_fn::<_, TILE, _>(|t| x.row(token(t))))
            };
            for (t, out) in out.iter_mut().enumerate() {
                let sums = &x.sums[(tile * TILE + t) * scales.len()..][..scales.len()];
                *out = dots[t] + dot(offsets, sums);
            }
        }
    }
}

impl QuantRows {
    /// Quantises rows of `columns` values to the nearest of 255 steps between ± the greatest.
    fn quantize(x: &[f32], columns: usize) -> Self {
        let blocks = x.len() / BLOCK;
        let (mut codes, mut scales, mut sums) = (vec![0i8; x.len()], vec![0f32; blocks], vec![0f32; blocks]);
        for (block, (x, codes)) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).enumerate() {
            let greatest = x.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
            let inverse = if greatest == 0.0 { 0.0 } else { 127.0 / greatest };
            for (code, value) in codes.iter_mut().zip(x) {
                *code = (value * inverse).round_ties_even() as i8;
            }
            scales[block] = greatest / 127.0;
            sums[block] = scales[block] * codes.iter().map(|code| i32::from(*code)).sum::<i32>() as f32;
        }
        Self { columns, codes, scales, sums }
    }

    fn row(&self, row: usize) -> QuantRow<'_> {
        let blocks = self.columns / BLOCK;
        QuantRow {
            codes: &self.codes[row * self.columns..][..self.columns],
            scales: &self.scales[row * blocks..][..blocks],
        }
    }
}

/// The dot products of a row of weights, without its offsets, with `T` tokens.
fn dots<const T: usize>(isa: Isa, codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) -> [f32; T] {
    match isa {
        Isa::Scalar => scalar(codes, scales, tokens),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::x86::quantized::dots_avx2(codes, scales, tokens),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => super::x86::quantized::dots_avx512_vnni(codes, scales, tokens),
    }
}

/// The oracle of the other paths, and the way of machines without them.
fn scalar<const T: usize>(codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) -> [f32; T] {
    let mut sums = [[0f32; LANES]; T];
    for (block, scale) in scales.iter().enumerate() {
        let mut weights = [0i32; BLOCK];
        match codes {
            RowCodes::Nibbles(codes) => {
                for (i, byte) in codes[block * BLOCK / 2..][..BLOCK / 2].iter().enumerate() {
                    weights[i] = i32::from(byte & 15);
                    weights[i + BLOCK / 2] = i32::from(byte >> 4);
                }
            }
            RowCodes::Bytes(codes) => {
                for (weight, code) in weights.iter_mut().zip(&codes[block * BLOCK..][..BLOCK]) {
                    *weight = i32::from(*code);
                }
            }
        }
        for (sums, token) in sums.iter_mut().zip(tokens) {
            let x = &token.codes[block * BLOCK..][..BLOCK];
            let scale = scale * token.scales[block];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let products = (lane * 4..lane * 4 + 4).map(|i| weights[i] * i32::from(x[i]));
                *sum = (products.sum::<i32>() as f32).mul_add(scale, *sum);
            }
        }
    }
    sums.map(|sums| total(&sums))
}

/// The sum of the lanes, in pairs.
#[inline(always)]
pub fn total(sums: &[f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = *sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Codes of 0 to 31: four bits each in `low`, laid out as nibbles are, and the fifth in `high`.
fn five_bit_codes(high: &[u8], low: &[u8]) -> impl Iterator<Item = i8> {
    (0..BLOCK).map(move |i| {
        let nibble = if i < BLOCK / 2 { low[i] & 15 } else { low[i - BLOCK / 2] >> 4 };
        let fifth = (high[i / 8] >> (i % 8)) & 1;
        (nibble | (fifth << 4)) as i8
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, quantized::QTensor};

    use super::*;

    const FORMATS: [GgmlDType; 5] =
        [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1, GgmlDType::Q8_0];

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
            let (matrix, exact) = matrix(dtype, 5, 96);
            for row in 0..5 {
                for (ours, theirs) in matrix.row(row).iter().zip(&exact[row * 96..]) {
                    assert!((ours - theirs).abs() < 1e-6, "{dtype:?}: {ours} {theirs}");
                }
            }
        }
    }

    #[test]
    fn products_are_near_exact_ones() {
        for dtype in FORMATS {
            let (rows, columns, tokens) = (37, 288, 6);
            let (matrix, exact) = matrix(dtype, rows, columns);
            let x = noise(tokens * columns, 9);
            let ours = matrix.multiply(&x, Isa::detect());
            for (token, x) in x.chunks(columns).enumerate() {
                for (row, weights) in exact.chunks(columns).enumerate() {
                    let expected = dot(weights, x);
                    let got = ours[token * rows + row];
                    assert!((got - expected).abs() < 0.15, "{dtype:?}: {got} for {expected}");
                }
            }
        }
    }

    #[test]
    fn every_path_and_every_batch_gives_the_same_bits() {
        for dtype in FORMATS {
            let (columns, tokens) = (160, 7);
            let (matrix, _) = matrix(dtype, 33, columns);
            let x = noise(tokens * columns, 11);
            let expected: Vec<f32> = x.chunks(columns).flat_map(|token| matrix.multiply(token, Isa::Scalar)).collect();
            for isa in Isa::available() {
                assert_eq!(matrix.multiply(&x, isa), expected, "{dtype:?} {isa:?}");
            }
        }
    }
}
