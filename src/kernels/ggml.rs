//! ggml's quantised formats, taken apart into blocks of 32 weights.

use candle_core::quantized::GgmlDType;
use half::f16;

/// Weights in a [`Block`].
pub const BLOCK: usize = 32;
const HALF: usize = BLOCK / 2;
/// Weights in a block of the formats whose names end in K.
const SUPER_BLOCK: usize = 256;

/// How the weights of a format are made of codes.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    dtype: GgmlDType,
    /// What is subtracted from a code.
    pub zero: u8,
    /// Whether codes are below 16.
    pub nibbles: bool,
    /// Whether each half of a block has a scale, and an offset, of its own.
    pub halves: bool,
    pub offsets: bool,
    /// Whether scales and offsets are exact in 16 bits.
    pub half_precision: bool,
}

/// 32 weights of a row: `scale * (code - zero) + offset`, with the scale and offset of their half.
#[derive(Debug, Default)]
pub struct Block {
    pub codes: [u8; BLOCK],
    pub scales: [f32; 2],
    pub offsets: [f32; 2],
}

impl Format {
    /// The format, if its weights can be written so.
    pub fn of(dtype: GgmlDType) -> Option<Self> {
        let (zero, nibbles, halves, offsets) = match dtype {
            GgmlDType::Q4_0 => (8, true, false, false),
            GgmlDType::Q4_1 => (0, true, false, true),
            GgmlDType::Q5_0 => (16, false, false, false),
            GgmlDType::Q5_1 => (0, false, false, true),
            GgmlDType::Q8_0 => (128, false, false, false),
            GgmlDType::Q2K => (0, true, true, true),
            GgmlDType::Q3K => (4, true, true, false),
            GgmlDType::Q4K => (0, true, false, true),
            GgmlDType::Q5K => (0, false, false, true),
            GgmlDType::Q6K => (32, false, true, false),
            _ => return None,
        };
        let half_precision = dtype.block_size() == BLOCK;
        Some(Self { dtype, zero, nibbles, halves, offsets, half_precision })
    }

    /// Takes a row apart, which is whole blocks as ggml stores them.
    pub fn blocks(self, row: &[u8]) -> impl Iterator<Item = Block> {
        let per_stored = self.dtype.block_size() / BLOCK;
        row.chunks_exact(self.dtype.type_size())
            .flat_map(move |stored| (0..per_stored).map(move |index| self.block(stored, index)))
    }

    fn block(self, stored: &[u8], index: usize) -> Block {
        match self.dtype {
            GgmlDType::Q4_0 => uniform(nibble_codes(&stored[2..]), float(stored, 0), 0.0),
            GgmlDType::Q4_1 => uniform(nibble_codes(&stored[4..]), float(stored, 0), float(stored, 2)),
            GgmlDType::Q5_0 => uniform(five_bit_codes(&stored[2..6], &stored[6..]), float(stored, 0), 0.0),
            GgmlDType::Q5_1 => uniform(five_bit_codes(&stored[4..8], &stored[8..]), float(stored, 0), float(stored, 2)),
            GgmlDType::Q8_0 => uniform(std::array::from_fn(|i| stored[2 + i] ^ 0x80), float(stored, 0), 0.0),
            GgmlDType::Q2K => q2_k(stored, index),
            GgmlDType::Q3K => q3_k(stored, index),
            GgmlDType::Q4K => q4_k(stored, index),
            GgmlDType::Q5K => q5_k(stored, index),
            _ => q6_k(stored, index),
        }
    }
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn uniform(codes: [u8; BLOCK], scale: f32, offset: f32) -> Block {
    Block { codes, scales: [scale; 2], offsets: [offset; 2] }
}

/// The low halves of 16 bytes, then the high ones.
fn nibble_codes(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < HALF { bytes[i] & 15 } else { bytes[i - HALF] >> 4 })
}

/// Four bits each in `low`, and the fifth in `high`.
fn five_bit_codes(high: &[u8], low: &[u8]) -> [u8; BLOCK] {
    let low = nibble_codes(low);
    std::array::from_fn(|i| low[i] | ((high[i / 8] >> (i % 8)) & 1) << 4)
}

/// 16 scales of 4 bits each with their offsets, 256 codes of 2 bits, two floats.
fn q2_k(stored: &[u8], index: usize) -> Block {
    let (scales, codes) = stored.split_at(16);
    let (scale, offset) = (float(codes, 64), float(codes, 66));
    let codes = &codes[index / 4 * BLOCK..];
    Block {
        codes: std::array::from_fn(|i| (codes[i] >> (2 * (index % 4))) & 3),
        scales: std::array::from_fn(|half| scale * f32::from(scales[2 * index + half] & 15)),
        offsets: std::array::from_fn(|half| -offset * f32::from(scales[2 * index + half] >> 4)),
    }
}

/// 256 third bits, 256 pairs of bits, 16 scales of 6 bits, a float.
fn q3_k(stored: &[u8], index: usize) -> Block {
    let (high, rest) = stored.split_at(SUPER_BLOCK / 8);
    let (low, rest) = rest.split_at(SUPER_BLOCK / 4);
    let (scales, scale) = (&rest[..12], float(rest, 12));
    let low = &low[index / 4 * BLOCK..];
    let scale_of = |i: usize| {
        let four = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
        let two = (scales[8 + i % 4] >> (2 * (i / 4))) & 3;
        scale * f32::from((four | two << 4) as i8 - 32)
    };
    Block {
        codes: std::array::from_fn(|i| (low[i] >> (2 * (index % 4))) & 3 | ((high[i] >> index) & 1) << 2),
        scales: std::array::from_fn(|half| scale_of(2 * index + half)),
        offsets: [0.0; 2],
    }
}

/// The six bits each of a scale and an offset, of which eight are packed into twelve bytes.
fn six_bit_scales(packed: &[u8], index: usize) -> (f32, f32) {
    let (scale, offset) = if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let low = packed[index + 4];
        (low & 15 | packed[index - 4] >> 6 << 4, low >> 4 | packed[index] >> 6 << 4)
    };
    (f32::from(scale), f32::from(offset))
}

/// Two floats, eight scales and offsets of 6 bits, 256 codes of 4 bits.
fn q4_k(stored: &[u8], index: usize) -> Block {
    let (scale, offset) = six_bit_scales(&stored[4..16], index);
    let codes = &stored[16 + index / 2 * BLOCK..];
    let codes = std::array::from_fn(|i| (codes[i] >> (4 * (index % 2))) & 15);
    uniform(codes, float(stored, 0) * scale, -float(stored, 2) * offset)
}

/// As Q4_K, with 256 fifth bits before the codes.
fn q5_k(stored: &[u8], index: usize) -> Block {
    let (scale, offset) = six_bit_scales(&stored[4..16], index);
    let (high, low) = stored[16..].split_at(SUPER_BLOCK / 8);
    let low = &low[index / 2 * BLOCK..];
    let codes = std::array::from_fn(|i| (low[i] >> (4 * (index % 2))) & 15 | ((high[i] >> index) & 1) << 4);
    uniform(codes, float(stored, 0) * scale, -float(stored, 2) * offset)
}

/// 256 times four bits, 256 times two bits, 16 scales of 8 bits, a float.
fn q6_k(stored: &[u8], index: usize) -> Block {
    let (low, rest) = stored.split_at(SUPER_BLOCK / 2);
    let (high, rest) = rest.split_at(SUPER_BLOCK / 4);
    let (scales, scale) = (&rest[..16], float(rest, 16));
    let (part, quarter) = (index / 4, index % 4);
    let (low, high) = (&low[part * 64 + quarter % 2 * BLOCK..], &high[part * BLOCK..]);
    Block {
        codes: std::array::from_fn(|i| (low[i] >> (4 * (quarter / 2))) & 15 | ((high[i] >> (2 * quarter)) & 3) << 4),
        scales: std::array::from_fn(|half| scale * f32::from(scales[2 * index + half] as i8)),
        offsets: [0.0; 2],
    }
}
