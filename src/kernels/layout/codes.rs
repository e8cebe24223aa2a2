//! Panels of quantized weights: 16 rows, whose codes are in the order in which kernels read them. The lanes of a vector
//! are rows, so nothing is ever summed across lanes.

use half::f16;

use super::activations::GROUP;

/// The rows of a panel.
pub const ROWS: usize = 16;

/// A group of columns: [`GROUP`] codes for each row of a panel. Nibbles hold two groups, the first one in the low
/// halves.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct CodeLine(pub [u8; ROWS * GROUP]);

/// The scales or the offsets of a panel. The factor of a block is its half, times its multiple if there are multiples.
#[derive(Clone, Copy)]
pub struct PanelFactors<'a> {
    /// A half for every `1 << shared` blocks.
    pub halves: &'a [[f16; ROWS]],
    /// A multiple for each block.
    pub multiples: Option<&'a [[i8; ROWS]]>,
    pub shared: u32,
}

/// A panel of weights: `weight = scale * (code - bias) + offset`.
pub struct QuantPanel<'a> {
    pub codes: &'a [CodeLine],
    /// The bits of codes above the fourth, placed by [`place_of_higher`].
    pub higher: &'a [CodeLine],
    /// The values that nibbles stand for, if they are no codes themselves.
    pub table: Option<&'static [u8; 16]>,
    pub bias: u8,
    pub scales: PanelFactors<'a>,
    pub offsets: Option<PanelFactors<'a>>,
}

/// The properties of codes that kernels are compiled for.
pub trait CodeFormat {
    /// Whether the low four bits are stored apart from the others, two codes in a byte.
    const NIBBLES: bool = true;
    /// Whether nibbles are indices of a table.
    const TABLE: bool = false;
    /// The number of bits above the fourth.
    const HIGHER: usize = 0;
}

/// Codes of eight bits.
pub struct EightBits;
/// Codes of four bits.
pub struct FourBits;
/// Codes of five bits.
pub struct FiveBits;
/// Codes of six bits.
pub struct SixBits;
/// Indices of four bits into a table of codes.
pub struct FourBitTable;

impl CodeFormat for EightBits {
    /// Whether the low four bits are stored apart from the others, two codes in a byte.
    const NIBBLES: bool = false;
}
impl CodeFormat for FourBits {}
impl CodeFormat for FiveBits {
    const HIGHER: usize = 1;
}
impl CodeFormat for SixBits {
    const HIGHER: usize = 2;
}
impl CodeFormat for FourBitTable {
    const TABLE: bool = true;
}

/// The place of the higher bits of a code, which is byte `byte` of a group: a line, a byte of the line, and the lowest
/// bit.
///
/// Single bits follow each other, so that the bits of a group are a mask. Pairs of bits are in the byte of their code,
/// those of four groups together, so that a shift aligns them.
#[inline(always)]
pub fn place_of_higher(bits: usize, group: usize, byte: usize) -> (usize, usize, usize) {
    match bits {
        1 => (group / 8, group % 8 * 8 + byte / 8, byte % 8),
        _ => (group / 4, byte, group % 4 * 2),
    }
}

impl PanelFactors<'_> {
    /// The factors of a block, one for each row.
    pub fn lanes(&self, block: usize) -> [f32; ROWS] {
        let halves = self.halves[block >> self.shared].map(f16::to_f32);
        match self.multiples {
            Some(multiples) => std::array::from_fn(|lane| halves[lane] * f32::from(multiples[block][lane])),
            None => halves,
        }
    }
}
