//! Codes and scales packed into panels.

use half::f16;

use super::ggml::QuantFormat;
use crate::kernels::{
    layout::{
        activations::GROUP,
        codes::{CodeLine, PanelFactors, ROWS, place_of_higher},
    },
    memory::WeightBuffer,
};

/// The scales or the offsets of all blocks, panel by panel.
pub struct BlockFactors {
    /// A half for each block, or for all blocks that are stored together.
    halves: WeightBuffer<[f16; ROWS]>,
    /// A multiple of the half for each block, if blocks share halves.
    multiples: Option<WeightBuffer<[i8; ROWS]>>,
    /// The binary logarithm of the number of blocks that share a half.
    shared: u32,
}

impl QuantFormat {
    /// Lines of a panel.
    #[inline(always)]
    pub fn lines(self, columns: usize) -> usize {
        columns / GROUP / if self.nibbles { 2 } else { 1 }
    }

    /// Lines of a panel's higher bits.
    #[inline(always)]
    pub fn higher_lines(self, columns: usize) -> usize {
        columns / GROUP * self.higher / 8
    }

    /// The place of a code: a line, a byte of the line, and the lowest bit.
    fn place(self, lane: usize, column: usize) -> (usize, usize, usize) {
        let (group, byte) = (column / GROUP, lane * GROUP + column % GROUP);
        if self.nibbles { (group / 2, byte, group % 2 * 4) } else { (group, byte, 0) }
    }

    /// Writes the codes of a lane from a column on, `at = (lane, column)`. Their places are zero before.
    pub fn put(self, lines: &mut [CodeLine], higher: &mut [CodeLine], at: (usize, usize), codes: &[u8]) {
        let (lane, column) = at;
        let low = if self.nibbles { 15 } else { 255 };
        for (i, codes) in codes.as_chunks::<GROUP>().0.iter().enumerate() {
            let (line, first, shift) = self.place(lane, column + i * GROUP);
            for (byte, code) in lines[line].0[first..][..GROUP].iter_mut().zip(codes) {
                *byte |= (code & low) << shift;
            }
            if self.higher > 0 {
                for (byte, code) in (first..).zip(codes) {
                    let (line, byte, shift) = place_of_higher(self.higher, column / GROUP + i, byte);
                    higher[line].0[byte] |= code >> 4 << shift;
                }
            }
        }
    }

    /// The code of a lane in a column.
    pub fn get(self, lines: &[CodeLine], higher: &[CodeLine], lane: usize, column: usize) -> u8 {
        let (line, byte, shift) = self.place(lane, column);
        let mut code = lines[line].0[byte] >> shift & if self.nibbles { 15 } else { 255 };
        if self.higher > 0 {
            let (line, byte, shift) = place_of_higher(self.higher, column / GROUP, byte);
            code |= (higher[line].0[byte] >> shift & ((1 << self.higher) - 1)) << 4;
        }
        self.table.map_or(code, |table| table[usize::from(code)])
    }
}

impl BlockFactors {
    /// Zeros for panels with `columns` columns in total.
    pub fn new(format: QuantFormat, columns: usize) -> Self {
        let shared = (format.stored / format.block).ilog2();
        Self {
            halves: WeightBuffer::Heap(vec![[f16::ZERO; ROWS]; columns / format.stored]),
            multiples: (shared > 0).then(|| WeightBuffer::Heap(vec![[0; ROWS]; columns / format.block])),
            shared,
        }
    }

    /// Writes the factors of a lane that are stored together.
    pub fn put(&mut self, at: usize, lane: usize, half: f16, multiples: &[i8]) {
        self.halves[at][lane] = half;
        if let Some(to) = &mut self.multiples {
            for (to, from) in to[at << self.shared..][..1 << self.shared].iter_mut().zip(multiples) {
                to[lane] = *from;
            }
        }
    }

    /// Drops the multiples: each factor is its half.
    pub fn without_multiples(&mut self) {
        self.multiples = None;
    }

    /// Space for the factors of `panels` panels, given the factors of `count` of them.
    pub fn for_panels(panels: usize, factors: &Self, count: usize) -> Self {
        Self {
            halves: WeightBuffer::for_panels(panels, &factors.halves, count),
            multiples: factors.multiples.as_ref().map(|multiples| WeightBuffer::for_panels(panels, multiples, count)),
            shared: factors.shared,
        }
    }

    /// Appends the factors of the panels that come next.
    pub fn append(&mut self, after: &Self) {
        self.halves.append(&after.halves);
        if let (Some(multiples), Some(after)) = (&mut self.multiples, &after.multiples) {
            multiples.append(after);
        }
    }

    /// The factors of a panel, which has `blocks` blocks.
    #[inline(always)]
    pub fn panel(&self, panel: usize, blocks: usize) -> PanelFactors<'_> {
        let halves = blocks >> self.shared;
        PanelFactors {
            halves: &self.halves[panel * halves..][..halves],
            multiples: self.multiples.as_ref().map(|multiples| &multiples[panel * blocks..][..blocks]),
            shared: self.shared,
        }
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.halves) + self.multiples.as_ref().map_or(0, |multiples| size_of_val(&**multiples))
    }
}
