//! Prefetching of quantized panels, and the properties of code formats that both paths ask for.

use std::{
    arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch},
    ops::Range,
};

use crate::kernels::layout::codes::{CodeFormat, CodeLine, QuantPanel};

/// How far ahead of a panel's codes those of others are asked for, at least: hardware does not look beyond a page.
pub const AHEAD: usize = 160;
/// A line in a fixed-point number of lines.
const LINE: usize = 1 << 16;

/// The codes of panels that come after one, which are asked for while it is gone through several times.
pub struct PanelPrefetcher {
    first: *const CodeLine,
    /// Where the next line is, and from one to the next, in parts of a [`LINE`]th.
    at: usize,
    step: usize,
    /// Whether the farther cache is asked for them.
    far: bool,
}

impl PanelPrefetcher {
    /// Those whose turn it is when the panel is gone through for the `index`th time of `count`, asked for every so many `lines`.
    #[inline(always)]
    pub fn new(panel: &QuantPanel<'_>, (index, count): (usize, usize), lines: usize, far: bool) -> Self {
        let all = panel.codes.len();
        let at = LINE * all.max(AHEAD) + LINE * all * index / count;
        Self { first: panel.codes.as_ptr(), at, step: LINE * lines / count, far }
    }

    /// Asks for the next line.
    #[inline(always)]
    pub fn ask(&mut self) {
        self.ask_for(self.first.wrapping_add(self.at / LINE));
        self.at += self.step;
    }

    /// Asks for all lines whose turn it is.
    #[inline(always)]
    pub fn ask_all(&mut self) {
        let end = self.at + self.step;
        for line in self.at / LINE..end / LINE {
            self.ask_for(self.first.wrapping_add(line));
        }
        self.at = end;
    }

    /// Asks for the higher bits of groups as far from these.
    #[inline(always)]
    pub fn ask_for_higher<C: CodeFormat>(&self, panel: &QuantPanel<'_>, groups: Range<usize>) {
        for g in groups.filter(|g| C::HIGHER > 0 && (g * C::HIGHER).is_multiple_of(8)) {
            self.ask_for(panel.higher.as_ptr().wrapping_add((g / 2 + AHEAD) * C::HIGHER / 4));
        }
    }

    #[inline(always)]
    pub fn ask_for(&self, line: *const CodeLine) {
        // SAFETY: every machine has it, and it reads nothing.
        unsafe {
            match self.far {
                true => _mm_prefetch::<_MM_HINT_T1>(line.cast()),
                false => _mm_prefetch::<_MM_HINT_T0>(line.cast()),
            }
        }
    }
}

/// Whether a tile of so many tokens takes less long than its weights come from memory: then the nearer cache, which has
/// fewer requests on their way at once, is not to be asked for them.
pub const fn waits_for_memory<C: CodeFormat>(tokens: usize) -> bool {
    !C::NIBBLES || tokens <= 4
}

/// Whether the bias is taken from weights before they are multiplied: without VNNI pairs of products have 16 bits, which
/// hold those of magnitudes up to 128, and so codes of eight bits only as signed ones.
pub const fn is_signed<C: CodeFormat, const VNNI: bool>() -> bool {
    !VNNI && (C::TABLE || !C::NIBBLES)
}
