//! Panels of quantized weights: 16 rows, whose codes lie in the order in which kernels read them.

use half::f16;

use super::activations::GROUP;

/// The rows of a panel.
pub const ROWS: usize = 16;

/// A group of columns: 4 codes of each row of a panel. If codes are nibbles, the low ones are one
/// group and the high ones the next.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct CodeLine(pub [u8; ROWS * GROUP]);

/// The scales, or the offsets, of a panel.
#[derive(Clone, Copy)]
pub struct PanelFactors<'a> {
    pub halves: &'a [[f16; ROWS]],
    pub multiples: Option<&'a [[i8; ROWS]]>,
    pub shared: u32,
}

/// What a kernel reads of 16 rows of weights.
pub struct QuantPanel<'a> {
    pub codes: &'a [CodeLine],
    /// The higher bits of codes, where [`place_of_higher`] says.
    pub higher: &'a [CodeLine],
    /// As in [`Format`].
    pub table: Option<&'static [u8; 16]>,
    pub bias: u8,
    pub scales: PanelFactors<'a>,
    pub offsets: Option<PanelFactors<'a>>,
}

/// What kernels know of codes when they are compiled.
pub trait CodeFormat {
    const NIBBLES: bool = true;
    /// Whether nibbles are looked up.
    const TABLE: bool = false;
    /// As in [`Format`].
    const HIGHER: usize = 0;
}

/// CodeFormat of eight bits.
pub struct EightBits;
/// Of four.
pub struct FourBits;
/// Of five.
pub struct FiveBits;
/// Of six.
pub struct SixBits;
/// Of four, which are looked up.
pub struct FourBitTable;

impl CodeFormat for EightBits {
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

/// Where the higher bits of a code are that is byte `byte` of a group: their line, their byte in there, and the lowest of them.
/// Single bits are those of one code after another, so that a group's are a mask; pairs of bits are in the bytes of their codes,
/// those of four groups, so that a shift brings them to where they belong.
#[inline(always)]
pub fn place_of_higher(bits: usize, group: usize, byte: usize) -> (usize, usize, usize) {
    match bits {
        1 => (group / 8, group % 8 * 8 + byte / 8, byte % 8),
        _ => (group / 4, byte, group % 4 * 2),
    }
}

impl PanelFactors<'_> {
    /// Those of a block.
    pub fn lanes(&self, block: usize) -> [f32; ROWS] {
        let halves = self.halves[block >> self.shared].map(f16::to_f32);
        match self.multiples {
            Some(multiples) => std::array::from_fn(|lane| halves[lane] * f32::from(multiples[block][lane])),
            None => halves,
        }
    }
}
