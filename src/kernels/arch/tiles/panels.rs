//! Tiles of products with panels.

use super::factors::FactorRows;
use crate::kernels::{
    layout::panels::{Accumulators, LANES, PanelElement, PanelProduct, Panels},
    memory::prefetch::Prefetcher,
};

/// Rows of a tile, at most.
const TILE_ROWS: usize = 6;
/// Steps between two calls of the prefetcher: a call takes as long as a step of few rows.
const STEPS_AT_ONCE: usize = 4;

/// Checks that the slices are as long as the strides need.
fn check<T: PanelElement>(product: &PanelProduct<'_, T>, sums: &Accumulators<'_, T::Sum>) {
    let PanelProduct { factors, factor_stride, rows, ref panels, steps, panel_stride } = *product;
    let (count, pieces) = (panels.count(), panels.pieces());
    assert!(rows > 0 && steps > 0 && count > 0 && pieces > 0);
    assert!(factors.len() >= (rows - 1) * factor_stride + pieces * steps);
    assert!(sums.sums.len() >= (rows - 1) * sums.stride + count * LANES);
    let (slices, beside) = match panels {
        Panels::Apart(panels) => (panels, 1),
        Panels::Beside(count, pieces) => (pieces, *count),
    };
    let least = (steps - 1) * panel_stride + beside * T::STEP_LEN;
    assert!(slices.iter().all(|slice| slice.len() >= least));
}

/// [`Accumulators`] by pointer.
struct AccumulatorPtr<S> {
    first: *mut S,
    stride: usize,
    add: bool,
}

impl<S> Clone for AccumulatorPtr<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for AccumulatorPtr<S> {}

impl<S> AccumulatorPtr<S> {
    /// The sums from a row and a panel on.
    ///
    /// # Safety
    /// The row and the panel exist.
    unsafe fn from(self, row: usize, panel: usize) -> Self {
        // SAFETY: passed on.
        Self { first: unsafe { self.first.add(row * self.stride + panel * LANES) }, ..self }
    }
}

/// Multiplies all rows with all panels, `P` panels at a time while so many are left.
///
/// # Safety
/// The machine has the instructions of `V`.
#[inline(always)]
pub unsafe fn add_all<T: PanelElement, V: Vector<T>, const P: usize>(
    product: &PanelProduct<'_, T>,
    sums: Accumulators<'_, T::Sum>,
    ahead: &mut Prefetcher<'_>,
) {
    check(product, &sums);
    let (rows, panels) = (product.rows, product.panels.count());
    let to = AccumulatorPtr { first: sums.sums.as_mut_ptr(), stride: sums.stride, add: sums.add };
    let mut panel = 0;
    // SAFETY: passed on; `check` passed, and the panels exist.
    unsafe {
        // Products of one sum wait for each other. With few rows, several panels give independent sums.
        while P == 1 && rows == 1 && panel + 4 <= panels {
            add_tile::<T, V, 1, 4>(product, 0, panel, ahead, to.from(0, panel));
            panel += 4;
        }
        while P == 1 && rows == 2 && panel + 2 <= panels {
            add_tile::<T, V, 2, 2>(product, 0, panel, ahead, to.from(0, panel));
            panel += 2;
        }
        while panel + P <= panels {
            add_panels::<T, V, P>(product, panel, ahead, to);
            panel += P;
        }
        while panel < panels {
            add_panels::<T, V, 1>(product, panel, ahead, to);
            panel += 1;
        }
    }
}

/// Multiplies all rows with `P` panels, in tiles of about equal height.
///
/// # Safety
/// The machine has the instructions of `V`, `check` passed, and `P` panels exist from `panel` on.
#[inline(always)]
unsafe fn add_panels<T: PanelElement, V: Vector<T>, const P: usize>(
    product: &PanelProduct<'_, T>,
    panel: usize,
    ahead: &mut Prefetcher<'_>,
    to: AccumulatorPtr<T::Sum>,
) {
    let mut row = 0;
    while row < product.rows {
        let left = product.rows - row;
        let rows = left.div_ceil(left.div_ceil(TILE_ROWS));
        // SAFETY: the tile is inside the product, which `check` accepted.
        unsafe {
            let to = to.from(row, panel);
            match rows {
                1 => add_tile::<T, V, 1, P>(product, row, panel, ahead, to),
                2 => add_tile::<T, V, 2, P>(product, row, panel, ahead, to),
                3 => add_tile::<T, V, 3, P>(product, row, panel, ahead, to),
                4 => add_tile::<T, V, 4, P>(product, row, panel, ahead, to),
                5 => add_tile::<T, V, 5, P>(product, row, panel, ahead, to),
                _ => add_tile::<T, V, TILE_ROWS, P>(product, row, panel, ahead, to),
            }
        }
        row += rows;
    }
}

/// Multiplies `R` rows with `P` panels, with all sums in registers.
///
/// # Safety
/// As above, `R` rows exist from `row` on, and `to` points to their sums.
#[inline(always)]
unsafe fn add_tile<T: PanelElement, V: Vector<T>, const R: usize, const P: usize>(
    product: &PanelProduct<'_, T>,
    row: usize,
    panel: usize,
    ahead: &mut Prefetcher<'_>,
    to: AccumulatorPtr<T::Sum>,
) {
    // SAFETY: `check` covers all reads and writes, which need no alignment.
    unsafe {
        let factors = product.factors.as_ptr().add(row * product.factor_stride);
        let mut held = [[V::zero(); P]; R];
        for (r, held) in held.iter_mut().enumerate().filter(|_| to.add) {
            for (p, held) in held.iter_mut().enumerate() {
                *held = V::load_sums(to.first.add(r * to.stride + p * LANES));
            }
        }
        for piece in 0..product.panels.pieces() {
            let mut factors = FactorRows::<_, R>::new(factors.add(piece * product.steps), product.factor_stride);
            let mut panels: [_; P] = std::array::from_fn(|p| match product.panels {
                Panels::Apart(panels) => panels.get_unchecked(panel + p).as_ptr(),
                Panels::Beside(_, pieces) => pieces.get_unchecked(piece).as_ptr().add((panel + p) * T::STEP_LEN),
            });
            for _ in 0..product.steps / STEPS_AT_ONCE {
                ahead.step(STEPS_AT_ONCE * R * P);
                for _ in 0..STEPS_AT_ONCE {
                    add_step(&mut factors, &mut panels, product.panel_stride, &mut held);
                }
            }
            let rest = product.steps % STEPS_AT_ONCE;
            ahead.step(rest * R * P);
            for _ in 0..rest {
                add_step(&mut factors, &mut panels, product.panel_stride, &mut held);
            }
        }
        for (r, held) in held.into_iter().enumerate() {
            for (p, held) in held.into_iter().enumerate() {
                held.store(to.first.add(r * to.stride + p * LANES));
            }
        }
    }
}

/// Adds the products of the current step of factors and panels, and advances both.
///
/// # Safety
/// The machine has the instructions of `V`, and the step exists.
#[inline(always)]
unsafe fn add_step<T: PanelElement, V: Vector<T>, const R: usize, const P: usize>(
    factors: &mut FactorRows<T::Factor, R>,
    panels: &mut [*const T; P],
    panel_stride: usize,
    held: &mut [[V; P]; R],
) {
    // SAFETY: passed on.
    unsafe {
        let mut values = [V::zero(); P];
        for (values, panel) in values.iter_mut().zip(panels) {
            *values = V::load(*panel);
            *panel = panel.wrapping_add(panel_stride);
        }
        for (r, held) in held.iter_mut().enumerate() {
            let factor = V::splat(*factors.row(r));
            for (held, values) in held.iter_mut().zip(values) {
                *held = factor.multiply_add(values, *held);
            }
        }
        factors.advance(1);
    }
}

/// Registers for the [`LANES`] lanes of a panel, or for their sums.
pub trait Vector<T: PanelElement>: Copy {
    fn zero() -> Self;

    /// Loads a step of a panel.
    ///
    /// # Safety
    /// The machine has the instructions, as for all functions of this trait, and a step is at `from`.
    unsafe fn load(from: *const T) -> Self;

    /// Loads sums.
    ///
    /// # Safety
    /// The machine has the instructions; `LANES` sums are at `from`.
    unsafe fn load_sums(from: *const T::Sum) -> Self;

    /// Broadcasts a factor to all lanes.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn splat(factor: T::Factor) -> Self;

    /// `self * values + sums`; floating-point sums are rounded once.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self;

    /// Stores sums.
    ///
    /// # Safety
    /// The machine has the instructions; `LANES` sums may be written at `to`.
    unsafe fn store(self, to: *mut T::Sum);
}
