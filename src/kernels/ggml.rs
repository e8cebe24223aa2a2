//! ggml's formats of quantised weights, taken apart block by block.

use candle_core::quantized::GgmlDType;
use half::f16;

/// How a format stores weights: `weight = scale * (code - bias) + offset`.
#[derive(Clone, Copy)]
pub struct Format {
    /// Codes have four bits.
    pub nibbles: bool,
    pub bias: u8,
    /// Weights that share a scale.
    pub block: usize,
    /// Weights that are stored together. If there are several blocks in it, their scales are small
    /// multiples of one.
    pub stored: usize,
    pub offsets: bool,
}

impl Format {
    /// The format, if it is one these kernels are for.
    pub fn of(dtype: GgmlDType) -> Option<Self> {
        let (nibbles, bias, block, stored, offsets) = match dtype {
            GgmlDType::Q4_0 => (true, 8, 32, 32, false),
            GgmlDType::Q4_1 => (true, 0, 32, 32, true),
            GgmlDType::Q5_0 => (false, 16, 32, 32, false),
            GgmlDType::Q5_1 => (false, 0, 32, 32, true),
            GgmlDType::Q8_0 => (false, 128, 32, 32, false),
            GgmlDType::Q2K => (true, 0, 16, 256, true),
            GgmlDType::Q3K => (true, 4, 16, 256, false),
            GgmlDType::Q4K => (true, 0, 32, 256, true),
            GgmlDType::Q5K => (false, 0, 32, 256, true),
            GgmlDType::Q6K => (false, 32, 16, 256, false),
            _ => return None,
        };
        Some(Self { nibbles, bias, block, stored, offsets })
    }
}

/// The weights that a format stores together.
pub struct Stored {
    pub codes: [u8; 256],
    pub scale: f16,
    pub offset: f16,
    /// What the blocks multiply the scale and the offset with, where there are several blocks.
    pub scales: [i8; 16],
    pub offsets: [i8; 16],
}

impl Stored {
    /// Reads one of `dtype`, for which there is a [`Format`].
    pub fn read(dtype: GgmlDType, bytes: &[u8]) -> Self {
        let mut this = Self { codes: [0; 256], scale: f16::ZERO, offset: f16::ZERO, scales: [0; 16], offsets: [0; 16] };
        match dtype {
            GgmlDType::Q4_0 => this.nibbles(&bytes[2..]),
            GgmlDType::Q4_1 => this.nibbles(&bytes[4..]),
            GgmlDType::Q5_0 => {
                this.nibbles(&bytes[6..]);
                this.fifth_bits(&bytes[2..6]);
            }
            GgmlDType::Q5_1 => {
                this.nibbles(&bytes[8..]);
                this.fifth_bits(&bytes[4..8]);
            }
            GgmlDType::Q2K => this.q2k(bytes),
            GgmlDType::Q3K => this.q3k(bytes),
            GgmlDType::Q4K => {
                this.nibble_rows(&bytes[16..]);
                this.six_bit_scales(&bytes[4..16]);
            }
            GgmlDType::Q5K => {
                this.nibble_rows(&bytes[48..]);
                this.bit_planes(&bytes[16..48], 4);
                this.six_bit_scales(&bytes[4..16]);
            }
            GgmlDType::Q6K => this.q6k(bytes),
            _ => this.signed_bytes(&bytes[2..]),
        }
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (this.scale, this.offset) = match dtype {
            GgmlDType::Q4_1 | GgmlDType::Q5_1 => (half(0), half(2)),
            GgmlDType::Q4K | GgmlDType::Q5K => (half(0), -half(2)),
            GgmlDType::Q2K => (half(80), -half(82)),
            GgmlDType::Q3K => (half(108), f16::ZERO),
            GgmlDType::Q6K => (half(208), f16::ZERO),
            _ => (half(0), f16::ZERO),
        };
        this
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
