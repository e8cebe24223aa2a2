//! Tiles of products with panels of bfloat16.

use std::marker::PhantomData;

use super::{factors::FactorRows, panels::Vector};
use crate::kernels::layout::{
    bf16::{Bf16Factor, Bf16Product, PairLine, WidenedFactor},
    panels::LANES,
};

/// Rows of a tile, at most.
const TILE_ROWS: usize = 6;

/// Checks that the slices are as long as the strides need.
pub fn check<F: Bf16Factor>(product: &Bf16Product<'_, F>, sums: &[f32], sum_stride: usize) {
    let Bf16Product { factors, factor_stride, rows, pairs, panels } = *product;
    assert!(rows > 0 && factors.len() >= (rows - 1) * factor_stride + pairs * F::PER_PAIR);
    assert!(panels.iter().all(|panel| panel.len() >= pairs));
    assert!(sums.len() >= (rows - 1) * sum_stride + panels.len() * LANES);
}

/// Multiplies all rows with some panels, `N` panels at a time.
///
/// # Safety
/// The machine has the instructions of `P`, `check` passed, and `N` divides the number of panels.
#[inline(always)]
pub unsafe fn add_panels<F: Bf16Factor, P: Bf16Path<F>, const N: usize>(
    product: &Bf16Product<'_, F>,
    panels: std::ops::Range<usize>,
    sums: *mut f32,
    sum_stride: usize,
) {
    for panel in panels.step_by(N) {
        for row in (0..product.rows).step_by(TILE_ROWS) {
            // SAFETY: the tile is inside the product, which `check` accepted.
            unsafe {
                let sums = sums.add(row * sum_stride + panel * LANES);
                match product.rows - row {
                    1 => add_tile::<F, P, 1, N>(product, (row, panel), sums, sum_stride),
                    2 => add_tile::<F, P, 2, N>(product, (row, panel), sums, sum_stride),
                    3 => add_tile::<F, P, 3, N>(product, (row, panel), sums, sum_stride),
                    4 => add_tile::<F, P, 4, N>(product, (row, panel), sums, sum_stride),
                    5 => add_tile::<F, P, 5, N>(product, (row, panel), sums, sum_stride),
                    _ => add_tile::<F, P, TILE_ROWS, N>(product, (row, panel), sums, sum_stride),
                }
            }
        }
    }
}

/// Multiplies `R` rows with `N` panels, with all sums in registers.
///
/// # Safety
/// As above, the rows and panels exist from `row` and from `panel` on, and `sums` points to their first sum.
#[inline(always)]
unsafe fn add_tile<F: Bf16Factor, P: Bf16Path<F>, const R: usize, const N: usize>(
    product: &Bf16Product<'_, F>,
    (row, panel): (usize, usize),
    sums: *mut f32,
    sum_stride: usize,
) {
    // SAFETY: `check` covers all reads and writes.
    unsafe {
        let factors = product.factors.as_ptr().add(row * product.factor_stride);
        let mut factors = FactorRows::<_, R>::new(factors, product.factor_stride);
        let mut held = [[P::Sums::zero(); N]; R];
        for (r, held) in held.iter_mut().enumerate() {
            for (n, held) in held.iter_mut().enumerate() {
                *held = P::Sums::load_sums(sums.add(r * sum_stride + n * LANES));
            }
        }
        let mut panels = [std::ptr::null(); N];
        for (n, start) in panels.iter_mut().enumerate() {
            *start = product.panels.get_unchecked(panel + n).as_ptr();
        }
        for _ in 0..product.pairs {
            for part in P::PARTS {
                let mut values = [P::zero_values(); N];
                for (values, panel) in values.iter_mut().zip(panels) {
                    *values = P::values(panel, *part);
                }
                for (r, held) in held.iter_mut().enumerate() {
                    let factor = P::factor(factors.row(r), *part);
                    for (held, values) in held.iter_mut().zip(values) {
                        *held = P::multiply_add(factor, values, *held);
                    }
                }
            }
            panels = panels.map(|panel| panel.add(1));
            factors.advance(F::PER_PAIR);
        }
        for (r, held) in held.into_iter().enumerate() {
            for (n, held) in held.into_iter().enumerate() {
                held.store(sums.add(r * sum_stride + n * LANES));
            }
        }
    }
}

/// A machine's way to multiply pairs of weights with factors.
///
/// # Safety
/// All functions need the instructions of the path, and pointers that may be read.
pub trait Bf16Path<F: Bf16Factor> {
    /// The halves of pairs in the order in which their products are added; a single part if one instruction takes both.
    const PARTS: &'static [usize];
    /// Registers of [`LANES`] sums.
    type Sums: Vector<f32>;
    /// Registers of a part of [`LANES`] pairs, or of a factor for all of them.
    type Values: Copy;
    fn zero_values() -> Self::Values;
    unsafe fn values(line: *const PairLine, part: usize) -> Self::Values;
    unsafe fn factor(factors: *const F, part: usize) -> Self::Values;
    unsafe fn multiply_add(factor: Self::Values, values: Self::Values, sums: Self::Sums) -> Self::Sums;
}

/// The path that widens weights to f32, one half of the pairs after the other.
pub struct Widened<V>(PhantomData<V>);

/// Registers that can widen halves of pairs.
pub trait Widen: Vector<f32> {
    /// Loads the halves of pairs as f32.
    ///
    /// # Safety
    /// The machine has the instructions; `line` may be read.
    unsafe fn halves(line: *const PairLine, half: usize) -> Self;
}

impl<F: WidenedFactor, V: Widen> Bf16Path<F> for Widened<V> {
    const PARTS: &'static [usize] = &F::ORDER;
    type Sums = V;
    type Values = V;

    #[inline(always)]
    fn zero_values() -> V {
        V::zero()
    }

    #[inline(always)]
    unsafe fn values(line: *const PairLine, part: usize) -> V {
        // SAFETY: passed on.
        unsafe { V::halves(line, part) }
    }

    #[inline(always)]
    unsafe fn factor(factors: *const F, part: usize) -> V {
        // SAFETY: passed on; a pair has `PER_PAIR` factors.
        unsafe { V::splat(F::half(std::slice::from_raw_parts(factors, F::PER_PAIR), part)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(factor: V, values: V, sums: V) -> V {
        // SAFETY: passed on.
        unsafe { factor.multiply_add(values, sums) }
    }
}
