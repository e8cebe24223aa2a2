use std::arch::x86_64::*;

use crate::kernels::panels::{Element, ElementType, LANES, Product};

/// Rows of factors that a tile holds the sums of.
const TILE_ROWS: usize = 6;

/// As `Product::add_scalar`. The machine must have AVX2, FMA and F16C, which `Isa::available` made sure of.
pub fn add_avx2<T: Element>(product: &Product<'_, T>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add<T: Element>(product: &Product<'_, T>, sums: *mut f32, sum_stride: usize) {
        for panel in 0..product.panels.len() / product.pieces {
            // SAFETY: passed on.
            unsafe { add_panels::<T, [__m256; 2], 1>(product, panel, sums, sum_stride) };
        }
    }
    check(product, sums, sum_stride);
    // SAFETY: `Isa::Avx2` exists only where these were detected, and `check` passed.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// As `Product::add_scalar`. The machine must have AVX-512F.
pub fn add_avx512<T: Element>(product: &Product<'_, T>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "avx512f")]
    unsafe fn add<T: Element>(product: &Product<'_, T>, sums: *mut f32, sum_stride: usize) {
        let (mut panel, panels) = (0, product.panels.len() / product.pieces);
        while panel < panels {
            // SAFETY: passed on.
            unsafe {
                if panel + 4 <= panels {
                    add_panels::<T, __m512, 4>(product, panel, sums, sum_stride);
                    panel += 4;
                } else {
                    add_panels::<T, __m512, 1>(product, panel, sums, sum_stride);
                    panel += 1;
                }
            }
        }
    }
    check(product, sums, sum_stride);
    // SAFETY: as above, with `Isa::Avx512` and the better ones.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// Brings elements near.
pub fn prefetch<T>(elements: &[T]) {
    const LINE_BYTES: usize = 64;
    for at in (0..size_of_val(elements)).step_by(LINE_BYTES) {
        // SAFETY: the address is inside the slice, and every x86-64 machine has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(elements.as_ptr().cast::<i8>().add(at)) };
    }
}

/// Every slice holds what its strides say.
fn check<T>(product: &Product<'_, T>, sums: &[f32], sum_stride: usize) {
    let Product { factors, factor_stride, rows, pieces, steps, panels, panel_stride } = *product;
    assert!(rows > 0 && pieces > 0 && steps > 0 && panels.len().is_multiple_of(pieces));
    assert!(factors.len() >= (rows - 1) * factor_stride + pieces * steps);
    assert!(panels.iter().all(|panel| panel.len() >= (steps - 1) * panel_stride + LANES));
    assert!(sums.len() >= (rows - 1) * sum_stride + panels.len() / pieces * LANES);
}

/// Takes all rows through `P` panels.
///
/// # Safety
/// The machine has what `V` needs, `check` passed and there are `P` panels from `panel` on.
#[inline(always)]
unsafe fn add_panels<T: Element, V: Vector, const P: usize>(
    product: &Product<'_, T>,
    panel: usize,
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
                1 => add_tile::<T, V, 1, P>(product, row, panel, sums, sum_stride),
                2 => add_tile::<T, V, 2, P>(product, row, panel, sums, sum_stride),
                3 => add_tile::<T, V, 3, P>(product, row, panel, sums, sum_stride),
                4 => add_tile::<T, V, 4, P>(product, row, panel, sums, sum_stride),
                5 => add_tile::<T, V, 5, P>(product, row, panel, sums, sum_stride),
                _ => add_tile::<T, V, TILE_ROWS, P>(product, row, panel, sums, sum_stride),
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
trait Vector: Copy {
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
}

impl Vector for [__m256; 2] {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: zeros are a value of it.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: passed on.
        unsafe { [load_8(from), load_8(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_fmadd_ps(self[0], values[0], sums[0]), _mm256_fmadd_ps(self[1], values[1], sums[1])] }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: passed on.
        unsafe {
            _mm256_storeu_ps(to, self[0]);
            _mm256_storeu_ps(to.add(8), self[1]);
        }
    }
}

/// # Safety
/// The machine has AVX2 and F16C, and 8 elements are at `from`.
#[inline(always)]
unsafe fn load_8<T: Element>(from: *const T) -> __m256 {
    // SAFETY: passed on; `Element` is sealed, so `TYPE` tells the truth.
    unsafe {
        match T::TYPE {
            ElementType::F32 => _mm256_loadu_ps(from.cast()),
            ElementType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            ElementType::Bf16 => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))
            }
        }
    }
}

impl Vector for __m512 {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: zeros are a value of it.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: passed on; `Element` is sealed, so `TYPE` tells the truth.
        unsafe {
            match T::TYPE {
                ElementType::F32 => _mm512_loadu_ps(from.cast()),
                ElementType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
                ElementType::Bf16 => {
                    let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_fmadd_ps(self, values, sums) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: passed on.
        unsafe { _mm512_storeu_ps(to, self) }
    }
}
