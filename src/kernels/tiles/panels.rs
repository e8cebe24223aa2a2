use std::{ops::Range, slice};

use crate::kernels::panels::{LANES, LINE_BYTES, Panelled, Product, prefetch_line};

/// Rows of factors that a tile holds the sums of.
const TILE_ROWS: usize = 6;

/// Every slice holds what its strides say.
fn check<T: Panelled>(product: &Product<'_, T>, sums: &[T::Sum], sum_stride: usize) {
    let Product { factors, factor_stride, rows, pieces, steps, panels, panel_stride, ahead: _ } = *product;
    assert!(rows > 0 && pieces > 0 && steps > 0 && panels.len().is_multiple_of(pieces));
    assert!(factors.len() >= (rows - 1) * factor_stride + pieces * steps);
    assert!(panels.iter().all(|panel| panel.len() >= (steps - 1) * panel_stride + T::STEP_LEN));
    assert!(sums.len() >= (rows - 1) * sum_stride + panels.len() / pieces * LANES);
}

/// What is asked for while a product is computed, a few lines with each step: many at once would have to wait for each other.
struct Ahead<'a, T> {
    slices: slice::Iter<'a, &'a [T]>,
    at: *const u8,
    end: *const u8,
    lines_a_step: usize,
}

impl<'a, T: Panelled> Ahead<'a, T> {
    /// That of a product which takes `panels_at_once` through the first rows.
    fn of(product: &Product<'a, T>, panels_at_once: usize) -> Self {
        let lines = |slice: &&[T]| size_of_val::<[T]>(*slice).div_ceil(LINE_BYTES);
        let lines: usize = product.ahead.iter().map(lines).sum();
        let panels = product.panels.len() / product.pieces;
        let steps = product.pieces * product.steps * panels.div_ceil(panels_at_once);
        let nowhere = std::ptr::null();
        Self { slices: product.ahead.iter(), at: nowhere, end: nowhere, lines_a_step: lines.div_ceil(steps) }
    }

    #[inline(always)]
    fn step(&mut self) {
        for _ in 0..self.lines_a_step {
            if self.at >= self.end {
                let Some(slice) = self.slices.next() else { return };
                let Range { start, end } = slice.as_ptr_range();
                (self.at, self.end) = (start.cast(), end.cast());
            }
            prefetch_line(self.at);
            self.at = self.at.wrapping_add(LINE_BYTES);
        }
    }
}

/// Takes all rows through all panels, `P` at a time as long as there are so many.
///
/// # Safety
/// The machine has what `V` needs.
#[inline(always)]
pub unsafe fn add_all<T: Panelled, V: Vector<T>, const P: usize>(
    product: &Product<'_, T>,
    sums: &mut [T::Sum],
    sum_stride: usize,
) {
    check(product, sums, sum_stride);
    let (mut ahead, panels) = (Ahead::of(product, P), product.panels.len() / product.pieces);
    let (sums, whole) = (sums.as_mut_ptr(), panels / P * P);
    // SAFETY: passed on; `check` passed, and there are so many panels.
    unsafe {
        for panel in (0..whole).step_by(P) {
            add_panels::<T, V, P>(product, panel, &mut ahead, sums, sum_stride);
        }
        for panel in whole..panels {
            add_panels::<T, V, 1>(product, panel, &mut ahead, sums, sum_stride);
        }
    }
}

/// Takes all rows through `P` panels.
///
/// # Safety
/// The machine has what `V` needs, `check` passed and there are `P` panels from `panel` on.
#[inline(always)]
unsafe fn add_panels<T: Panelled, V: Vector<T>, const P: usize>(
    product: &Product<'_, T>,
    panel: usize,
    ahead: &mut Ahead<'_, T>,
    sums: *mut T::Sum,
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
unsafe fn add_tile<T: Panelled, V: Vector<T>, const R: usize, const P: usize>(
    product: &Product<'_, T>,
    row: usize,
    panel: usize,
    ahead: &mut Ahead<'_, T>,
    sums: *mut T::Sum,
    sum_stride: usize,
) {
    // SAFETY: `check` made sure of all reads and writes. Loads need no alignment.
    unsafe {
        let factors = product.factors.as_ptr().add(row * product.factor_stride);
        let mut held = [[V::zero(); P]; R];
        for (r, held) in held.iter_mut().enumerate() {
            for (p, held) in held.iter_mut().enumerate() {
                *held = V::load_sums(sums.add(r * sum_stride + p * LANES));
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
                ahead.step();
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

/// The `LANES` lanes of a panel, or their sums, in registers.
pub trait Vector<T: Panelled>: Copy {
    fn zero() -> Self;

    /// # Safety
    /// As with all functions here, the machine has the instructions; a step of a panel is at `from`.
    unsafe fn load(from: *const T) -> Self;

    /// # Safety
    /// The machine has the instructions; `LANES` sums are at `from`.
    unsafe fn load_sums(from: *const T::Sum) -> Self;

    /// A factor of all lanes.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn splat(factor: T::Factor) -> Self;

    /// `self * values + sums`, of numbers with a fraction rounded once.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self;

    /// # Safety
    /// The machine has the instructions; `LANES` sums may be written at `to`.
    unsafe fn store(self, to: *mut T::Sum);
}
