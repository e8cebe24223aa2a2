//! Codes and scales packed into panels.

use half::f16;

use super::ggml::Format;
use crate::kernels::{
    layout::{
        activations::GROUP,
        codes::{CodeLine, PanelFactors, ROWS, place_of_higher},
    },
    memory::WeightBuffer,
};

/// The scales, or the offsets, of all blocks, panel by panel.
pub struct BlockFactors {
    /// One for each block, or for all blocks that are stored together.
    halves: WeightBuffer<[f16; ROWS]>,
    /// What the blocks multiply those with, if they share them.
    multiples: Option<WeightBuffer<[i8; ROWS]>>,
    /// The blocks that share a half, as a power of two.
    shared: u32,
}

impl Format {
    /// The lines of a panel.
    #[inline(always)]
    pub fn lines(self, columns: usize) -> usize {
        columns / GROUP / if self.nibbles { 2 } else { 1 }
    }

    /// Those with its higher bits.
    #[inline(always)]
    pub fn higher_lines(self, columns: usize) -> usize {
        columns / GROUP * self.higher / 8
    }

    /// Where a code is: its line, its byte in there, and its lowest bit.
    fn place(self, lane: usize, column: usize) -> (usize, usize, usize) {
        let (group, byte) = (column / GROUP, lane * GROUP + column % GROUP);
        if self.nibbles { (group / 2, byte, group % 2 * 4) } else { (group, byte, 0) }
    }

    /// Writes the codes of a lane, which are zero yet, from `column` on.
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
    /// Zeros for panels of `columns` in all.
    pub fn new(format: Format, columns: usize) -> Self {
        let shared = (format.stored / format.block).ilog2();
        Self {
            halves: WeightBuffer::Heap(vec![[f16::ZERO; ROWS]; columns / format.stored]),
            multiples: (shared > 0).then(|| WeightBuffer::Heap(vec![[0; ROWS]; columns / format.block])),
            shared,
        }
    }

    /// Writes those of a lane that are stored together.
    pub fn put(&mut self, at: usize, lane: usize, half: f16, multiples: &[i8]) {
        self.halves[at][lane] = half;
        if let Some(to) = &mut self.multiples {
            for (to, from) in to[at << self.shared..][..1 << self.shared].iter_mut().zip(multiples) {
                to[lane] = *from;
            }
        }
    }

    /// Each is its half alone.
    pub fn without_multiples(&mut self) {
        self.multiples = None;
    }

    /// Space for as many for each of `panels` as those have for each of theirs.
    pub fn for_panels(panels: usize, those: &Self, theirs: usize) -> Self {
        Self {
            halves: WeightBuffer::for_panels(panels, &those.halves, theirs),
            multiples: those.multiples.as_ref().map(|those| WeightBuffer::for_panels(panels, those, theirs)),
            shared: those.shared,
        }
    }

    /// Adds those of panels that come after these.
    pub fn append(&mut self, after: &Self) {
        self.halves.append(&after.halves);
        if let (Some(multiples), Some(after)) = (&mut self.multiples, &after.multiples) {
            multiples.append(after);
        }
    }

    #[inline(always)]
    pub fn panel(&self, panel: usize, blocks: usize) -> PanelFactors<'_> {
        let halves = blocks >> self.shared;
        PanelFactors {
            halves: &self.halves[panel * halves..][..halves],
            multiples: self.multiples.as_ref().map(|multiples| &multiples[panel * blocks..][..blocks]),
            shared: self.shared,
        }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.halves) + self.multiples.as_ref().map_or(0, |multiples| size_of_val(&**multiples))
    }
}
