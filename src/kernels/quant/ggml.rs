//! ggml's formats of quantised weights, taken apart block by block.

use candle_core::quantized::GgmlDType;
use half::f16;

/// The types of quantised tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "ggml's names")]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

impl GgmlType {
    /// By the number that GGUF gives it.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Some(match id {
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            20 => Self::IQ4_NL,
            23 => Self::IQ4_XS,
            39 => Self::MXFP4,
            _ => return None,
        })
    }

    /// Weights that are stored together.
    pub fn block_len(self) -> usize {
        Format::of(self).stored
    }

    /// The bytes they take.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::MXFP4 => 17,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::IQ4_XS => 136,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bits of a weight, without scales.
    pub fn bits(self) -> u32 {
        match self {
            Self::Q2_K => 2,
            Self::Q3_K => 3,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K | Self::IQ4_NL | Self::IQ4_XS | Self::MXFP4 => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 5,
            Self::Q6_K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// Weights that share a scale.
    pub fn group(self) -> usize {
        Format::of(self).block
    }

    /// candle's name for it, if it knows it.
    pub fn candle(self) -> Option<GgmlDType> {
        Some(match self {
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2_K => GgmlDType::Q2K,
            Self::Q3_K => GgmlDType::Q3K,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q5_K => GgmlDType::Q5K,
            Self::Q6_K => GgmlDType::Q6K,
            Self::IQ4_NL | Self::IQ4_XS | Self::MXFP4 => return None,
        })
    }
}

/// What the codes of IQ4_NL and IQ4_XS stand for.
const UNEVEN: [u8; 16] = around_128([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);
/// What those of MXFP4 do: twice a number of [four bits](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
const FLOATS: [u8; 16] = around_128([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

const fn around_128(values: [i8; 16]) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = values[i] as u8 ^ 0x80;
        i += 1;
    }
    table
}

/// How a format stores weights: `weight = scale * (code - bias) + offset`.
#[derive(Clone, Copy)]
pub struct Format {
    /// Codes have four bits, and `higher` ones.
    pub nibbles: bool,
    /// How many higher bits codes have, which are stored apart: two at most.
    pub higher: usize,
    /// What nibbles stand for, where that is not their own value: these are the codes then.
    pub table: Option<&'static [u8; 16]>,
    pub bias: u8,
    /// Weights that share a scale.
    pub block: usize,
    /// Weights that are stored together. If there are several blocks in it, their scales are small
    /// multiples of one.
    pub stored: usize,
    pub offsets: bool,
}

impl Format {
    pub fn of(kind: GgmlType) -> Self {
        let (nibbles, bias, block, stored, offsets) = match kind {
            GgmlType::Q4_0 => (true, 8, 32, 32, false),
            GgmlType::Q4_1 => (true, 0, 32, 32, true),
            GgmlType::Q5_0 => (true, 16, 32, 32, false),
            GgmlType::Q5_1 => (true, 0, 32, 32, true),
            GgmlType::Q8_0 => (false, 128, 32, 32, false),
            GgmlType::Q2_K => (true, 0, 16, 256, true),
            GgmlType::Q3_K => (true, 4, 16, 256, false),
            GgmlType::Q4_K => (true, 0, 32, 256, true),
            GgmlType::Q5_K => (true, 0, 32, 256, true),
            GgmlType::Q6_K => (true, 32, 16, 256, false),
            GgmlType::IQ4_NL | GgmlType::MXFP4 => (true, 128, 32, 32, false),
            GgmlType::IQ4_XS => (true, 128, 32, 256, false),
        };
        let table = match kind {
            GgmlType::IQ4_NL | GgmlType::IQ4_XS => Some(&UNEVEN),
            GgmlType::MXFP4 => Some(&FLOATS),
            _ => None,
        };
        let higher = if nibbles { (kind.bits() as usize).saturating_sub(4) } else { 0 };
        Self { nibbles, higher, table, bias, block, stored, offsets }
    }
}

/// The weights that a format stores together.
pub struct GgmlBlock {
    pub codes: [u8; 256],
    pub scale: f16,
    pub offset: f16,
    /// What the blocks multiply the scale and the offset with, where there are several blocks.
    pub scales: [i8; 16],
    pub offsets: [i8; 16],
}

impl GgmlBlock {
    /// Reads one of this type.
    pub fn read(kind: GgmlType, bytes: &[u8]) -> Self {
        let mut this = Self { codes: [0; 256], scale: f16::ZERO, offset: f16::ZERO, scales: [0; 16], offsets: [0; 16] };
        match kind {
            GgmlType::Q4_0 => this.nibbles(&bytes[2..]),
            GgmlType::Q4_1 => this.nibbles(&bytes[4..]),
            GgmlType::Q5_0 => {
                this.nibbles(&bytes[6..]);
                this.fifth_bits(&bytes[2..6]);
            }
            GgmlType::Q5_1 => {
                this.nibbles(&bytes[8..]);
                this.fifth_bits(&bytes[4..8]);
            }
            GgmlType::Q8_0 => this.signed_bytes(&bytes[2..]),
            GgmlType::Q2_K => this.q2k(bytes),
            GgmlType::Q3_K => this.q3k(bytes),
            GgmlType::Q4_K => {
                this.nibble_rows(&bytes[16..]);
                this.six_bit_scales(&bytes[4..16]);
            }
            GgmlType::Q5_K => {
                this.nibble_rows(&bytes[48..]);
                this.bit_planes(&bytes[16..48], 4);
                this.six_bit_scales(&bytes[4..16]);
            }
            GgmlType::Q6_K => this.q6k(bytes),
            GgmlType::IQ4_NL => this.nibbles(&bytes[2..]),
            GgmlType::IQ4_XS => this.iq4_xs(bytes),
            GgmlType::MXFP4 => this.nibbles(&bytes[1..]),
        }
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (this.scale, this.offset) = match kind {
            GgmlType::Q4_1 | GgmlType::Q5_1 => (half(0), half(2)),
            GgmlType::Q4_K | GgmlType::Q5_K => (half(0), -half(2)),
            GgmlType::Q2_K => (half(80), -half(82)),
            GgmlType::Q3_K => (half(108), f16::ZERO),
            GgmlType::Q6_K => (half(208), f16::ZERO),
            // An exponent; what 16 bits cannot hold is far from any weight.
            GgmlType::MXFP4 => (f16::from_f32((f32::from(bytes[0]) - 128.0).exp2().min(65504.0)), f16::ZERO),
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL | GgmlType::IQ4_XS => {
                (half(0), f16::ZERO)
            }
        };
        this
    }

    /// Eight blocks of 32 codes, with six bits for each of their scales.
    fn iq4_xs(&mut self, bytes: &[u8]) {
        let high = u16::from_le_bytes([bytes[2], bytes[3]]);
        for block in 0..8 {
            let packed = &bytes[8 + 16 * block..][..16];
            for (i, byte) in packed.iter().enumerate() {
                self.codes[32 * block + i] = byte & 15;
                self.codes[32 * block + 16 + i] = byte >> 4;
            }
            let low = bytes[4 + block / 2] >> (block % 2 * 4) & 15;
            self.scales[block] = (low | ((high >> (2 * block) & 3) as u8) << 4) as i8 - 32;
        }
    }

    /// Low halves first, then the high ones.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.codes[i] = byte & 15;
            self.codes[i + bytes.len()] = byte >> 4;
        }
    }

    /// As `nibbles` within every 64 codes.
    fn nibble_rows(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = i / 32 * 64 + i % 32;
            self.codes[at] = byte & 15;
            self.codes[at + 32] = byte >> 4;
        }
    }

    fn signed_bytes(&mut self, bytes: &[u8]) {
        for (code, byte) in self.codes.iter_mut().zip(bytes) {
            *code = byte ^ 0x80;
        }
    }

    /// One bit a code, in the order of the codes.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        for (i, code) in self.codes[..8 * bytes.len()].iter_mut().enumerate() {
            *code |= (bytes[i / 8] >> (i % 8) & 1) << 4;
        }
    }

    /// One bit a code, to be bit `to`; the bits `i` of the 32 bytes belong to the `i`th 32 codes.
    fn bit_planes(&mut self, bytes: &[u8], to: u32) {
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code |= (bytes[i % 32] >> (i / 32) & 1) << to;
        }
    }

    /// Two bits a code, to be bits `to` and up; 32 bytes hold four times 32 codes, the lowest bits first.
    fn pair_planes(&mut self, bytes: &[u8], to: u32) {
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code |= (bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) << to;
        }
    }

    fn q2k(&mut self, bytes: &[u8]) {
        self.pair_planes(&bytes[16..80], 0);
        for (i, byte) in bytes[..16].iter().enumerate() {
            self.scales[i] = (byte & 15) as i8;
            self.offsets[i] = (byte >> 4) as i8;
        }
    }

    fn q3k(&mut self, bytes: &[u8]) {
        self.pair_planes(&bytes[32..96], 0);
        self.bit_planes(&bytes[..32], 2);
        let packed = &bytes[96..108];
        for (i, scale) in self.scales.iter_mut().enumerate() {
            let low = packed[i % 8] >> (i / 8 * 4) & 15;
            let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
            *scale = (low | high << 4) as i8 - 32;
        }
    }

    fn q6k(&mut self, bytes: &[u8]) {
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code = bytes[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        }
        self.pair_planes(&bytes[128..192], 4);
        for (scale, byte) in self.scales.iter_mut().zip(&bytes[192..208]) {
            *scale = *byte as i8;
        }
    }

    /// Eight scales and eight offsets of six bits in twelve bytes.
    fn six_bit_scales(&mut self, packed: &[u8]) {
        for i in 0..4 {
            self.scales[i] = (packed[i] & 63) as i8;
            self.offsets[i] = (packed[i + 4] & 63) as i8;
            self.scales[i + 4] = (packed[i + 8] & 15 | packed[i] >> 6 << 4) as i8;
            self.offsets[i + 4] = (packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4) as i8;
        }
    }
}
