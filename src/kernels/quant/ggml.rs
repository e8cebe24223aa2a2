//! ggml's types of quantized weights.

use candle_core::quantized::GgmlDType;

/// A type of quantized tensors.
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
    /// The type with this number in GGUF files. `None` for types that are not supported.
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

    /// Weights of a stored block.
    pub fn block_len(self) -> usize {
        QuantFormat::of(self).stored
    }

    /// Bytes of a stored block.
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

    /// Bits of a weight without its share of the scales.
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
        QuantFormat::of(self).block
    }

    /// candle's type, if it has one.
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

/// The values of the codes of IQ4_NL and IQ4_XS, plus 128.
const IQ4_VALUES: [u8; 16] = around_128([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);
/// The values of MXFP4's codes, plus 128: twice a [four-bit
/// float](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
const MXFP4_VALUES: [u8; 16] = around_128([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

const fn around_128(values: [i8; 16]) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = values[i] as u8 ^ 0x80;
        i += 1;
    }
    table
}

/// The layout of a quantized type: `weight = scale * (code - bias) + offset`.
#[derive(Clone, Copy)]
pub struct QuantFormat {
    /// Whether codes are nibbles with `higher` more bits, and not bytes.
    pub nibbles: bool,
    /// Bits of a code above the fourth, which are stored apart: two at most.
    pub higher: usize,
    /// The codes that nibbles stand for, if they are indices of a table.
    pub table: Option<&'static [u8; 16]>,
    pub bias: u8,
    /// Weights that share a scale.
    pub block: usize,
    /// Weights that are stored together. If they are several blocks, the scales of these are small multiples of one
    /// scale.
    pub stored: usize,
    /// Whether blocks have offsets.
    pub offsets: bool,
}

impl QuantFormat {
    /// The layout of ggml's types.
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
            GgmlType::IQ4_NL | GgmlType::IQ4_XS => Some(&IQ4_VALUES),
            GgmlType::MXFP4 => Some(&MXFP4_VALUES),
            _ => None,
        };
        let higher = if nibbles { (kind.bits() as usize).saturating_sub(4) } else { 0 };
        Self { nibbles, higher, table, bias, block, stored, offsets }
    }
}
