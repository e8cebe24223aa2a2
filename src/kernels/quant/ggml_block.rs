//! Stored blocks of ggml's types, unpacked (`ggml-common.h` has their layouts).

use half::f16;

use super::ggml::GgmlType;

/// Weights that are stored together, unpacked.
pub struct GgmlBlock {
    pub codes: [u8; 256],
    pub scale: f16,
    pub offset: f16,
    /// The multiples of `scale` for each block, if there are several blocks.
    pub scales: [i8; 16],
    /// The multiples of `offset` for each block, if there are several blocks.
    pub offsets: [i8; 16],
}

impl GgmlBlock {
    /// Unpacks `bytes`, which are one stored block of a type.
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
            // The scale is a power of two. Powers out of the range of f16 are far from any weight's scale.
            GgmlType::MXFP4 => (f16::from_f32((f32::from(bytes[0]) - 128.0).exp2().min(65504.0)), f16::ZERO),
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL | GgmlType::IQ4_XS => {
                (half(0), f16::ZERO)
            }
        };
        this
    }

    /// IQ4_XS: eight blocks of 32 codes, with six bits for each scale.
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

    /// Nibbles: all low halves first, then all high halves.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            self.codes[i] = byte & 15;
            self.codes[i + bytes.len()] = byte >> 4;
        }
    }

    /// Nibbles: low halves, then high halves, within every 64 codes.
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

    /// Fifth bits, in the order of the codes.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        for (i, code) in self.codes[..8 * bytes.len()].iter_mut().enumerate() {
            *code |= (bytes[i / 8] >> (i % 8) & 1) << 4;
        }
    }

    /// Bit `to` of the codes: bit `i` of the 32 bytes belongs to the `i`th 32 codes.
    fn bit_planes(&mut self, bytes: &[u8], to: u32) {
        for (i, code) in self.codes.iter_mut().enumerate() {
            *code |= (bytes[i % 32] >> (i / 32) & 1) << to;
        }
    }

    /// Bits `to` and `to + 1` of the codes: 32 bytes hold them for four times 32 codes, the lowest bits first.
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
