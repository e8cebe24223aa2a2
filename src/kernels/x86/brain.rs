use std::arch::x86_64::*;

use crate::kernels::{
    brain::{Factor, Line, Product, numbers},
    panels::LANES,
};

/// Rows of factors, and panels, that a tile holds the sums of.
const TILE_ROWS: usize = 6;
const TILE_PANELS: usize = 4;

/// As `Product::add_to` of a scalar machine. The machine must have AVX2 and FMA, which `Isa::available` made sure of.
pub fn add_avx2<F: Factor>(product: &Product<'_, F>, sums: &mut [f32], sum_stride: usize)
where
    Avx2: Path<F>,
{
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add<F: Factor>(product: &Product<'_, F>, sums: *mut f32, sum_stride: usize)
    where
        Avx2: Path<F>,
    {
        // SAFETY: passed on.
        unsafe { add_panels::<F, Avx2, 1>(product, 0..product.panels.len(), sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: `Isa::Avx2` exists only where these were detected, and `check` passed.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// As above. The machine must have AVX-512F.
pub fn add_avx512<F: Factor>(product: &Product<'_, F>, sums: &mut [f32], sum_stride: usize)
where
    Avx512: Path<F>,
{
    #[target_feature(enable = "avx512f")]
    unsafe fn add<F: Factor>(product: &Product<'_, F>, sums: *mut f32, sum_stride: usize)
    where
        Avx512: Path<F>,
    {
        // SAFETY: passed on.
        unsafe { add_all::<F, Avx512>(product, sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: as above, with `Isa::Avx512` and the better ones.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// As above. The machine must have AVX-512 BF16.
pub fn add_bf16(product: &Product<'_, u32>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add(product: &Product<'_, u32>, sums: *mut f32, sum_stride: usize) {
        // SAFETY: passed on.
        unsafe { add_all::<u32, Avx512Bf16>(product, sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: as above, with `Isa::Avx512Bf16`.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// As `brain::widen`. The machine must have AVX-512F.
pub fn widen_avx512(lines: &[Line; LANES / 2], out: &mut [[f32; LANES]]) {
    #[target_feature(enable = "avx512f")]
    unsafe fn widen(lines: &[Line; LANES / 2], out: &mut [[f32; LANES]]) {
        for (row, out) in rows_avx512(lines).into_iter().zip(out) {
            let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(row));
            // SAFETY: a row is as long as a register.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(wide)) };
        }
    }
    // SAFETY: `Isa::Avx512` and the better ones exist only where it was detected.
    unsafe { widen(lines, out) }
}

/// As `brain::pair_rows`. The machine must have AVX-512F.
pub fn pair_rows_avx512(lines: &[Line; LANES / 2], out: &mut [Line]) {
    #[target_feature(enable = "avx512f")]
    unsafe fn pair(lines: &[Line; LANES / 2], out: &mut [Line]) {
        for ([upper, lower], out) in rows_avx512(lines).as_chunks().0.iter().zip(out) {
            let lower = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(*lower));
            let both = _mm512_or_si512(_mm512_cvtepu16_epi32(*upper), lower);
            // SAFETY: a line is as long and as aligned as a register.
            unsafe { _mm512_store_si512(out.0.as_mut_ptr().cast(), both) };
        }
    }
    // SAFETY: as above.
    unsafe { pair(lines, out) }
}

/// The rows of lines, in bfloat16.
#[inline]
#[target_feature(enable = "avx512f")]
fn rows_avx512(lines: &[Line; LANES / 2]) -> [__m256i; LANES] {
    // SAFETY: a line is as long and as aligned as a register.
    let lines = lines.each_ref().map(|line| unsafe { _mm512_load_si512(line.0.as_ptr().cast()) });
    let mut rows = [_mm256_setzero_si256(); LANES];
    // Each quarter of a register has another four rows: their first pairs one row after another, and their last ones.
    let [first, last] = [0, 4].map(|at| {
        let (low, high) = (
            [_mm512_unpacklo_epi32(lines[at], lines[at + 1]), _mm512_unpacklo_epi32(lines[at + 2], lines[at + 3])],
            [_mm512_unpackhi_epi32(lines[at], lines[at + 1]), _mm512_unpackhi_epi32(lines[at + 2], lines[at + 3])],
        );
        [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ]
    });
    let halves = [_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15)];
    for i in 0..4 {
        for (half, order) in halves.into_iter().enumerate() {
            let two = _mm512_permutex2var_epi64(first[i], order, last[i]);
            rows[8 * half + i] = _mm512_castsi512_si256(two);
            rows[8 * half + 4 + i] = _mm512_extracti64x4_epi64::<1>(two);
        }
    }
    rows
}

/// Every slice holds what its strides say.
fn check<F: Factor>(product: &Product<'_, F>, sums: &[f32], sum_stride: usize) {
    let Product { factors, factor_stride, rows, pairs, panels } = *product;
    assert!(rows > 0 && factors.len() >= (rows - 1) * factor_stride + pairs * F::PER_PAIR);
    assert!(panels.iter().all(|panel| panel.len() >= pairs));
    assert!(sums.len() >= (rows - 1) * sum_stride + panels.len() * LANES);
}

/// # Safety
/// The machine has what the path needs, and `check` passed.
#[inline(always)]
unsafe fn add_all<F: Factor, P: Path<F>>(product: &Product<'_, F>, sums: *mut f32, sum_stride: usize) {
    let whole = product.panels.len() / TILE_PANELS * TILE_PANELS;
    // SAFETY: passed on.
    unsafe {
        add_panels::<F, P, TILE_PANELS>(product, 0..whole, sums, sum_stride);
        add_panels::<F, P, 1>(product, whole..product.panels.len(), sums, sum_stride);
    }
}

/// Takes all rows through some panels, `N` at a time.
///
/// # Safety
/// As above, and `N` divides the number of panels.
#[inline(always)]
unsafe fn add_panels<F: Factor, P: Path<F>, const N: usize>(
    product: &Product<'_, F>,
    panels: std::ops::Range<usize>,
    sums: *mut f32,
    sum_stride: usize,
) {
    for panel in panels.step_by(N) {
        for row in (0..product.rows).step_by(TILE_ROWS) {
            // SAFETY: the tile is inside the product, and so inside what `check` looked at.
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

/// `R` rows with `N` panels, all sums in registers.
///
/// # Safety
/// As above, and there are so many from `row` and from `panel` on; `sums` is where their sums begin.
#[inline(always)]
unsafe fn add_tile<F: Factor, P: Path<F>, const R: usize, const N: usize>(
    product: &Product<'_, F>,
    (row, panel): (usize, usize),
    sums: *mut f32,
    sum_stride: usize,
) {
    // SAFETY: `check` made sure of all reads and writes.
    unsafe {
        let factors = product.factors.as_ptr().add(row * product.factor_stride);
        let mut held = [[P::zero(); N]; R];
        for (r, held) in held.iter_mut().enumerate() {
            for (n, held) in held.iter_mut().enumerate() {
                *held = P::load(sums.add(r * sum_stride + n * LANES));
            }
        }
        let mut panels = [std::ptr::null(); N];
        for (n, start) in panels.iter_mut().enumerate() {
            *start = product.panels.get_unchecked(panel + n).as_ptr();
        }
        for pair in 0..product.pairs {
            for part in P::PARTS {
                let mut values = [P::zero_values(); N];
                for (values, panel) in values.iter_mut().zip(panels) {
                    *values = P::values(panel.add(pair), *part);
                }
                for (r, held) in held.iter_mut().enumerate() {
                    let factors = factors.add(r * product.factor_stride + pair * F::PER_PAIR);
                    let factor = P::factor(factors, *part);
                    for (held, values) in held.iter_mut().zip(values) {
                        *held = P::multiply_add(factor, values, *held);
                    }
                }
            }
        }
        for (r, held) in held.into_iter().enumerate() {
            for (n, held) in held.into_iter().enumerate() {
                P::store(held, sums.add(r * sum_stride + n * LANES));
            }
        }
    }
}

/// How a machine multiplies pairs of weights with factors.
///
/// # Safety
/// All functions need the instructions of the path, and addresses that may be read or written.
pub trait Path<F: Factor> {
    /// The halves of pairs in the order in which their products are added, or all that one instruction takes both.
    const PARTS: &'static [usize];
    /// `LANES` sums.
    type Sums: Copy;
    /// A part of `LANES` pairs, or of a factor for all of them.
    type Values: Copy;
    fn zero() -> Self::Sums;
    fn zero_values() -> Self::Values;
    unsafe fn load(from: *const f32) -> Self::Sums;
    unsafe fn store(sums: Self::Sums, to: *mut f32);
    unsafe fn values(line: *const Line, part: usize) -> Self::Values;
    unsafe fn factor(factors: *const F, part: usize) -> Self::Values;
    unsafe fn multiply_add(factor: Self::Values, values: Self::Values, sums: Self::Sums) -> Self::Sums;
}

pub struct Avx2;
pub struct Avx512;
pub struct Avx512Bf16;

/// Sums in a register of 512 bits.
macro_rules! sums_512 {
    () => {
        type Sums = __m512;

        #[inline(always)]
        fn zero() -> __m512 {
            // SAFETY: zeros are a value of it.
            unsafe { std::mem::zeroed() }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: passed on.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(sums: __m512, to: *mut f32) {
            // SAFETY: passed on.
            unsafe { _mm512_storeu_ps(to, sums) }
        }
    };
}

impl Path<u32> for Avx512Bf16 {
    const PARTS: &'static [usize] = &[0];
    type Values = __m512i;
    sums_512!();

    #[inline(always)]
    fn zero_values() -> __m512i {
        // SAFETY: zeros are a value of it.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn values(line: *const Line, _: usize) -> __m512i {
        // SAFETY: passed on; lines are aligned.
        unsafe { _mm512_load_si512(line.cast()) }
    }

    #[inline(always)]
    unsafe fn factor(factors: *const u32, _: usize) -> __m512i {
        // SAFETY: passed on.
        unsafe { _mm512_set1_epi32(*factors as i32) }
    }

    #[inline(always)]
    unsafe fn multiply_add(factor: __m512i, values: __m512i, sums: __m512) -> __m512 {
        // SAFETY: passed on; both types are 64 bytes of any bits.
        unsafe {
            let factor = std::mem::transmute::<__m512i, __m512bh>(factor);
            _mm512_dpbf16_ps(sums, factor, std::mem::transmute::<__m512i, __m512bh>(values))
        }
    }
}

/// Paths that widen the parts of pairs, for one type of factors.
macro_rules! widening_paths {
    ($factor:ty, $parts:expr, $part_of:expr) => {
        impl Path<$factor> for Avx512 {
            const PARTS: &'static [usize] = $parts;
            type Values = __m512;
            sums_512!();

            #[inline(always)]
            fn zero_values() -> __m512 {
                <Self as Path<$factor>>::zero()
            }

            #[inline(always)]
            unsafe fn values(line: *const Line, part: usize) -> __m512 {
                // SAFETY: passed on; lines are aligned.
                unsafe {
                    let line = _mm512_load_si512(line.cast());
                    _mm512_castsi512_ps(match part {
                        0 => _mm512_slli_epi32(line, 16),
                        _ => _mm512_and_si512(line, _mm512_set1_epi32(HIGH)),
                    })
                }
            }

            #[inline(always)]
            unsafe fn factor(factors: *const $factor, part: usize) -> __m512 {
                // SAFETY: passed on.
                unsafe { _mm512_set1_ps($part_of(factors, part)) }
            }

            #[inline(always)]
            unsafe fn multiply_add(factor: __m512, values: __m512, sums: __m512) -> __m512 {
                // SAFETY: passed on.
                unsafe { _mm512_fmadd_ps(factor, values, sums) }
            }
        }

        impl Path<$factor> for Avx2 {
            const PARTS: &'static [usize] = $parts;
            type Sums = [__m256; 2];
            type Values = [__m256; 2];

            #[inline(always)]
            fn zero() -> [__m256; 2] {
                // SAFETY: zeros are a value of it.
                unsafe { std::mem::zeroed() }
            }

            #[inline(always)]
            fn zero_values() -> [__m256; 2] {
                <Self as Path<$factor>>::zero()
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> [__m256; 2] {
                // SAFETY: passed on.
                unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
            }

            #[inline(always)]
            unsafe fn store(sums: [__m256; 2], to: *mut f32) {
                // SAFETY: passed on.
                unsafe {
                    _mm256_storeu_ps(to, sums[0]);
                    _mm256_storeu_ps(to.add(8), sums[1]);
                }
            }

            #[inline(always)]
            unsafe fn values(line: *const Line, part: usize) -> [__m256; 2] {
                // SAFETY: passed on; lines are aligned.
                unsafe {
                    let line = line.cast::<__m256i>();
                    let (first, second) = (_mm256_load_si256(line), _mm256_load_si256(line.add(1)));
                    [widened_256(first, part), widened_256(second, part)]
                }
            }

            #[inline(always)]
            unsafe fn factor(factors: *const $factor, part: usize) -> [__m256; 2] {
                // SAFETY: passed on.
                unsafe { [_mm256_set1_ps($part_of(factors, part)); 2] }
            }

            #[inline(always)]
            unsafe fn multiply_add(factor: [__m256; 2], values: [__m256; 2], sums: [__m256; 2]) -> [__m256; 2] {
                // SAFETY: passed on.
                unsafe {
                    let first = _mm256_fmadd_ps(factor[0], values[0], sums[0]);
                    [first, _mm256_fmadd_ps(factor[1], values[1], sums[1])]
                }
            }
        }
    };
}

/// The bits of the second number of a pair.
const HIGH: i32 = 0xffff_0000_u32 as i32;

/// A part of pairs as numbers.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn widened_256(pairs: __m256i, part: usize) -> __m256 {
    // SAFETY: passed on.
    unsafe {
        _mm256_castsi256_ps(match part {
            0 => _mm256_slli_epi32(pairs, 16),
            _ => _mm256_and_si256(pairs, _mm256_set1_epi32(HIGH)),
        })
    }
}

/// # Safety
/// There are two factors.
#[inline(always)]
unsafe fn of_two(factors: *const f32, part: usize) -> f32 {
    // SAFETY: passed on.
    unsafe { *factors.add(part) }
}

/// # Safety
/// There is a factor.
#[inline(always)]
unsafe fn of_pair(factors: *const u32, part: usize) -> f32 {
    // SAFETY: passed on.
    numbers(unsafe { *factors })[part]
}

widening_paths!(f32, &[0, 1], of_two);
// As the instruction for bfloat16 adds them.
widening_paths!(u32, &[1, 0], of_pair);
