//! Prefetching of quantized panels, and properties of code formats.

use std::{
    arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch},
    ops::Range,
};

use crate::kernels::layout::codes::{CodeFormat, CodeLine, QuantPanel};

/// Lines between the codes in use and the prefetched ones, at least: hardware prefetchers stop at the end of a page.
pub const AHEAD: usize = 160;
/// One line, as a fixed-point number of lines.
const LINE: usize = 1 << 16;

/// Prefetches the codes of the panels after one, while the kernel goes through that one for several tiles.
pub struct PanelPrefetcher {
    first: *const CodeLine,
    /// The next line, and the distance to the one after it, as fixed-point numbers of lines.
    at: usize,
    step: usize,
    /// Whether lines go to the second-level cache, not to the first.
    far: bool,
}

impl PanelPrefetcher {
    /// Prefetches the share of tile `index` of `count`: one line for every `lines` lines of the panel.
    #[inline(always)]
    pub fn new(panel: &QuantPanel<'_>, (index, count): (usize, usize), lines: usize, far: bool) -> Self {
        let all = panel.codes.len();
        let at = LINE * all.max(AHEAD) + LINE * all * index / count;
        Self { first: panel.codes.as_ptr(), at, step: LINE * lines / count, far }
    }

    /// Prefetches the next line.
    #[inline(always)]
    pub fn ask(&mut self) {
        self.ask_for(self.first.wrapping_add(self.at / LINE));
        self.at += self.step;
    }

    /// Prefetches all lines that are due.
    #[inline(always)]
    pub fn ask_all(&mut self) {
        let end = self.at + self.step;
        for line in self.at / LINE..end / LINE {
            self.ask_for(self.first.wrapping_add(line));
        }
        self.at = end;
    }

    /// Prefetches the higher bits of groups, [`AHEAD`] lines of codes after these.
    #[inline(always)]
    pub fn ask_for_higher<C: CodeFormat>(&self, panel: &QuantPanel<'_>, groups: Range<usize>) {
        for g in groups.filter(|g| C::HIGHER > 0 && (g * C::HIGHER).is_multiple_of(8)) {
            self.ask_for(panel.higher.as_ptr().wrapping_add((g / 2 + AHEAD) * C::HIGHER / 4));
        }
    }

    #[inline(always)]
    pub fn ask_for(&self, line: *const CodeLine) {
        // SAFETY: every x86-64 machine has the instruction, which faults at no address.
        unsafe {
            match self.far {
                true => _mm_prefetch::<_MM_HINT_T1>(line.cast()),
                false => _mm_prefetch::<_MM_HINT_T0>(line.cast()),
            }
        }
    }
}

/// Whether weights arrive from memory more slowly than a tile of so many tokens multiplies them. Lines then go to the
/// second-level cache, which can have more requests under way than the first.
pub const fn waits_for_memory<C: CodeFormat>(tokens: usize) -> bool {
    !C::NIBBLES || tokens <= 4
}

/// Whether the bias is subtracted from weights before they are multiplied. Without VNNI, sums of two products have 16
/// bits, which codes of eight bits exceed unless they are signed.
pub const fn is_signed<C: CodeFormat, const VNNI: bool>() -> bool {
    !VNNI && (C::TABLE || !C::NIBBLES)
}
