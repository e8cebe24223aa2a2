use super::factors::FactorRows;
use crate::kernels::{
    layout::panels::{Accumulators, LANES, PanelElement, PanelProduct, Panels},
    memory::prefetch::Prefetcher,
};

/// Rows of factors that a tile holds the sums of.
const TILE_ROWS: usize = 6;
/// Steps between two looks at what is to be asked for ahead: a look takes as long as a step of few rows.
const STEPS_AT_ONCE: usize = 4;

/// Every slice holds what its strides say.
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

/// Where sums go, as [`Accumulators`].
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
    /// From a row and a panel on.
    ///
    /// # Safety
    /// There are sums of them.
    unsafe fn from(self, row: usize, panel: usize) -> Self {
        // SAFETY: passed on.
        Self { first: unsafe { self.first.add(row * self.stride + panel * LANES) }, ..self }
    }
}

/// Takes all rows through all panels, `P` at a time as long as there are so many.
///
/// # Safety
/// The machine has what `V` needs.
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
    // SAFETY: passed on; `check` passed, and there are so many panels.
    unsafe {
        // A product waits for the one before it in its sum: where rows are few, other panels have others meanwhile.
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

/// Takes all rows through `P` panels, in tiles of about as many rows each.
///
/// # Safety
/// The machine has what `V` needs, `check` passed and there are `P` panels from `panel` on.
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
        // SAFETY: the tile is inside the product, and so inside what `check` looked at.
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

/// `R` rows with `P` panels, all sums in registers.
///
/// # Safety
/// As above, and there are `R` rows from `row` on; `to` is where their sums go.
#[inline(always)]
unsafe fn add_tile<T: PanelElement, V: Vector<T>, const R: usize, const P: usize>(
    product: &PanelProduct<'_, T>,
    row: usize,
    panel: usize,
    ahead: &mut Prefetcher<'_>,
    to: AccumulatorPtr<T::Sum>,
) {
    // SAFETY: `check` made sure of all reads and writes. Loads need no alignment.
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

/// Adds the products of the step that factors and panels are at, and goes on to the next one.
///
/// # Safety
/// The machine has what `V` needs, and there is the step.
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

/// The `LANES` lanes of a panel, or their sums, in registers.
pub trait Vector<T: PanelElement>: Copy {
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
