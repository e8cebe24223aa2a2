use std::{ops::Range, slice};

use crate::kernels::panels::{Element, LANES, LINE_BYTES, Product};

/// Rows of factors that a tile holds the sums of.
const TILE_ROWS: usize = 6;

/// Every slice holds what its strides say.
pub fn check<T>(product: &Product<'_, T>, sums: &[f32], sum_stride: usize) {
    let Product { factors, factor_stride, rows, pieces, steps, panels, panel_stride, ahead: _ } = *product;
    assert!(rows > 0 && pieces > 0 && steps > 0 && panels.len().is_multiple_of(pieces));
    assert!(factors.len() >= (rows - 1) * factor_stride + pieces * steps);
    assert!(panels.iter().all(|panel| panel.len() >= (steps - 1) * panel_stride + LANES));
    assert!(sums.len() >= (rows - 1) * sum_stride + panels.len() / pieces * LANES);
}

/// What is asked for while a product is computed, a few lines with each step: many at once would have to wait for each other.
pub struct Ahead<'a, T> {
    slices: slice::Iter<'a, &'a [T]>,
    at: *const u8,
    end: *const u8,
    lines_a_step: usize,
}

impl<'a, T> Ahead<'a, T> {
    /// That of a product which takes `panels_at_once` through the first rows.
    pub fn of(product: &Product<'a, T>, panels_at_once: usize) -> Self {
        let lines = |slice: &&[T]| size_of_val::<[T]>(*slice).div_ceil(LINE_BYTES);
        let lines: usize = product.ahead.iter().map(lines).sum();
        let panels = product.panels.len() / product.pieces;
        let steps = product.pieces * product.steps * panels.div_ceil(panels_at_once);
        let nowhere = std::ptr::null();
        Self { slices: product.ahead.iter(), at: nowhere, end: nowhere, lines_a_step: lines.div_ceil(steps) }
    }

    /// # Safety
    /// The machine has what `V` needs.
    #[inline(always)]
    unsafe fn step<V: Vector>(&mut self) {
        for _ in 0..self.lines_a_step {
            if self.at >= self.end {
                let Some(slice) = self.slices.next() else { return };
                let Range { start, end } = slice.as_ptr_range();
                (self.at, self.end) = (start.cast(), end.cast());
            }
            // SAFETY: passed on.
            unsafe { V::prefetch(self.at) };
            self.at = self.at.wrapping_add(LINE_BYTES);
        }
    }
}

/// Takes all rows through `P` panels.
///
/// # Safety
/// The machine has what `V` needs, `check` passed and there are `P` panels from `panel` on.
#[inline(always)]
pub unsafe fn add_panels<T: Element, V: Vector, const P: usize>(
    product: &Product<'_, T>,
    panel: usize,
    ahead: &mut Ahead<'_, T>,
    sums: *mut f32,
    sum_stride: usize,
) {
    let mut row = 0;
    while row < product.rows {
        let rows = (product.rows - row).min(TILE_ROWS);
        // SAFETY: the tile is inside the product, and so inside what `check` looked at.
        unsafe {
            let sums = sums.add(row * sum_stride + panel * LANES);
            match rows {
                1 => add_tile::<T, V, 1, P>(product, row, panel, ahead, sums, sum_stride),
                2 => add_tile::<T, V, 2, P>(product, row, panel, ahead, sums, sum_stride),
                3 => add_tile::<T, V, 3, P>(product, row, panel, ahead, sums, sum_stride),
                4 => add_tile::<T, V, 4, P>(product, row, panel, ahead, sums, sum_stride),
                5 => add_tile::<T, V, 5, P>(product, row, panel, ahead, sums, sum_stride),
                _ => add_tile::<T, V, TILE_ROWS, P>(product, row, panel, ahead, sums, sum_stride),
            }
        }
        row += rows;
    }
}

/// `R` rows with `P` panels, all sums in registers.
///
/// # Safety
/// As above, and there are `R` rows from `row` on; `sums` is where their sums begin.
#[inline(always)]
unsafe fn add_tile<T: Element, V: Vector, const R: usize, const P: usize>(
    product: &Product<'_, T>,
    row: usize,
    panel: usize,
    ahead: &mut Ahead<'_, T>,
    sums: *mut f32,
    sum_stride: usize,
) {
    // SAFETY: `check` made sure of all reads and writes. Loads need no alignment.
    unsafe {
        let factors = product.factors.as_ptr().add(row * product.factor_stride);
        let mut held = [[V::zero(); P]; R];
        for (r, held) in held.iter_mut().enumerate() {
            for (p, held) in held.iter_mut().enumerate() {
                *held = V::load(sums.add(r * sum_stride + p * LANES));
            }
        }
        for piece in 0..product.pieces {
            let factors = factors.add(piece * product.steps);
            let first = piece * (product.panels.len() / product.pieces) + panel;
            let mut panels = [std::ptr::null(); P];
            for (p, start) in panels.iter_mut().enumerate() {
                *start = product.panels.get_unchecked(first + p).as_ptr();
            }
            for step in 0..product.steps {
                ahead.step::<V>();
                let mut values = [V::zero(); P];
                for (values, panel) in values.iter_mut().zip(panels) {
                    *values = V::load(panel.add(step * product.panel_stride));
                }
                for (r, held) in held.iter_mut().enumerate() {
                    let factor = V::splat(*factors.add(r * product.factor_stride + step));
                    for (held, values) in held.iter_mut().zip(values) {
                        *held = factor.multiply_add(values, *held);
                    }
                }
            }
        }
        for (r, held) in held.into_iter().enumerate() {
            for (p, held) in held.into_iter().enumerate() {
                held.store(sums.add(r * sum_stride + p * LANES));
            }
        }
    }
}

/// `LANES` numbers in registers.
pub trait Vector: Copy {
    fn zero() -> Self;

    /// # Safety
    /// As with all functions here, the machine has the instructions; `LANES` elements are at `from`.
    unsafe fn load<T: Element>(from: *const T) -> Self;

    /// # Safety
    /// The machine has the instructions.
    unsafe fn splat(value: f32) -> Self;

    /// `self * values + sums`, rounded once.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self;

    /// # Safety
    /// The machine has the instructions; `LANES` numbers may be written at `to`.
    unsafe fn store(self, to: *mut f32);

    /// Asks for a line of memory, if the machine can. It need not be there.
    ///
    /// # Safety
    /// The machine has the instruction.
    unsafe fn prefetch(_line: *const u8) {}
}
