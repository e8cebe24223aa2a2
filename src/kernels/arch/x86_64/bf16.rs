//! Products with panels of bfloat16, with AVX2 and AVX-512.

use std::arch::{asm, x86_64::*};

use crate::kernels::{
    arch::tiles::bf16::{Bf16Path, Widen, Widened, add_panels, check},
    layout::{
        bf16::{Bf16Factor, Bf16Product, PairLine, WidenedFactor},
        panels::LANES,
    },
};

/// Panels of a tile.
const TILE_PANELS: usize = 4;

/// Does as the scalar `Bf16Product::add_to`. Needs AVX2 and FMA.
pub fn add_avx2<F: WidenedFactor>(product: &Bf16Product<'_, F>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add<F: WidenedFactor>(product: &Bf16Product<'_, F>, sums: *mut f32, sum_stride: usize) {
        // SAFETY: passed on.
        unsafe { add_panels::<F, Widened<[__m256; 2]>, 1>(product, 0..product.panels.len(), sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: `Isa::Avx2` exists only where its features were detected, and `check` passed.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// Does as [`add_avx2`]. Needs AVX-512F.
pub fn add_avx512<F: WidenedFactor>(product: &Bf16Product<'_, F>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "avx512f")]
    unsafe fn add<F: WidenedFactor>(product: &Bf16Product<'_, F>, sums: *mut f32, sum_stride: usize) {
        // SAFETY: passed on.
        unsafe { add_all::<F, Widened<__m512>>(product, sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: as above, with `Isa::Avx512` and the better ones.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// Does as [`add_avx2`]. Needs AVX-512 BF16.
pub fn add_bf16(product: &Bf16Product<'_, u32>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add(product: &Bf16Product<'_, u32>, sums: *mut f32, sum_stride: usize) {
        // SAFETY: passed on.
        unsafe { add_all::<u32, Dots>(product, sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: as above, with `Isa::Avx512Bf16`.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

/// Does as the scalar `bf16::multiply_tall`. Needs AVX-512 BF16.
pub fn multiply_tall<const T: usize>(panel: &[PairLine], x: &[[u32; T]], products: &mut [[f32; LANES]; T]) {
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn multiply<const T: usize>(panel: &[PairLine], x: &[[u32; T]], products: &mut [[f32; LANES]; T]) {
        let mut sums = [_mm512_setzero_ps(); T];
        for (line, x) in panel.iter().zip(x) {
            // The same line of the next panel.
            let ahead = std::ptr::from_ref(line).wrapping_add(panel.len());
            // SAFETY: prefetching reads nothing, and the machine has the instructions of the path.
            unsafe {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                let values = Dots::values(line, 0);
                for (sum, factor) in sums.iter_mut().zip(x) {
                    // The instruction reads its last operand, the factor, from memory.
                    *sum = Dots::multiply_add(values, Dots::factor(factor, 0), *sum);
                }
            }
        }
        for (products, sums) in products.iter_mut().zip(sums) {
            // SAFETY: the products of a row are as long as a register.
            unsafe { _mm512_storeu_ps(products.as_mut_ptr(), sums) };
        }
    }
    // SAFETY: `Isa::Avx512Bf16` exists only where its features were detected.
    unsafe { multiply(panel, x, products) }
}

/// Does as the scalar `bf16::widen`. Needs AVX-512F.
pub fn widen_avx512(lines: &[PairLine; LANES / 2], out: &mut [[f32; LANES]]) {
    #[target_feature(enable = "avx512f")]
    unsafe fn widen(lines: &[PairLine; LANES / 2], out: &mut [[f32; LANES]]) {
        for (row, out) in rows_avx512(lines).into_iter().zip(out) {
            let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(row));
            // SAFETY: a row is as long as a register.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castsi512_ps(wide)) };
        }
    }
    // SAFETY: `Isa::Avx512` and the better ones exist only where AVX-512 was detected.
    unsafe { widen(lines, out) }
}

/// Does as the scalar `bf16::pair_rows`. Needs AVX-512F.
pub fn pair_rows_avx512(lines: &[PairLine; LANES / 2], out: &mut [PairLine]) {
    #[target_feature(enable = "avx512f")]
    unsafe fn pair(lines: &[PairLine; LANES / 2], out: &mut [PairLine]) {
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
fn rows_avx512(lines: &[PairLine; LANES / 2]) -> [__m256i; LANES] {
    // SAFETY: a line is as long and as aligned as a register.
    let lines = lines.each_ref().map(|line| unsafe { _mm512_load_si512(line.0.as_ptr().cast()) });
    let mut rows = [_mm256_setzero_si256(); LANES];
    // Each quarter of a register has four rows: their first pairs row by row in one register, their last pairs in
    // another.
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

/// # Safety
/// The machine has the instructions of `P`, and `check` passed.
#[inline(always)]
unsafe fn add_all<F: Bf16Factor, P: Bf16Path<F>>(product: &Bf16Product<'_, F>, sums: *mut f32, sum_stride: usize) {
    let whole = product.panels.len() / TILE_PANELS * TILE_PANELS;
    // SAFETY: passed on.
    unsafe {
        add_panels::<F, P, TILE_PANELS>(product, 0..whole, sums, sum_stride);
        add_panels::<F, P, 1>(product, whole..product.panels.len(), sums, sum_stride);
    }
}

/// The path that multiplies both halves of pairs by one instruction.
struct Dots;

impl Bf16Path<u32> for Dots {
    const PARTS: &'static [usize] = &[0];
    type Sums = __m512;
    type Values = __m512i;

    #[inline(always)]
    fn zero_values() -> __m512i {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn values(line: *const PairLine, _: usize) -> __m512i {
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
        // SAFETY: passed on; both types are 64 bytes, and all bit patterns are values of them.
        unsafe {
            let factor = std::mem::transmute::<__m512i, __m512bh>(factor);
            _mm512_dpbf16_ps(sums, factor, std::mem::transmute::<__m512i, __m512bh>(values))
        }
    }
}

/// The bits of the second value of a pair.
const HIGH: i32 = 0xffff_0000_u32 as i32;

impl Widen for __m512 {
    #[inline(always)]
    unsafe fn halves(line: *const PairLine, half: usize) -> Self {
        // SAFETY: passed on; lines are aligned.
        unsafe {
            let line = _mm512_load_si512(line.cast());
            _mm512_castsi512_ps(match half {
                0 => _mm512_slli_epi32(line, 16),
                _ => _mm512_and_si512(line, _mm512_set1_epi32(HIGH)),
            })
        }
    }
}

impl Widen for [__m256; 2] {
    #[inline(always)]
    unsafe fn halves(line: *const PairLine, half: usize) -> Self {
        // SAFETY: passed on; lines are aligned.
        unsafe {
            let line = line.cast::<__m256i>();
            [widened_256(line, half), widened_256(line.add(1), half)]
        }
    }
}

/// Widens a half of pairs. Assembly keeps compilers from holding the pairs in registers until the other half is
/// multiplied, with sums in memory meanwhile.
///
/// # Safety
/// The machine has AVX2, and half a line is at `pairs`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widened_256(pairs: *const __m256i, half: usize) -> __m256 {
    let values: __m256;
    // SAFETY: the code only reads the pairs, which are aligned.
    unsafe {
        match half {
            0 => asm!(
                "vmovdqa {values}, ymmword ptr [{pairs}]",
                "vpslld {values}, {values}, 16",
                pairs = in(reg) pairs,
                values = out(ymm_reg) values,
                options(pure, readonly, nostack, preserves_flags),
            ),
            _ => asm!(
                "vpand {values}, {high}, ymmword ptr [{pairs}]",
                pairs = in(reg) pairs,
                high = in(ymm_reg) _mm256_set1_epi32(HIGH),
                values = out(ymm_reg) values,
                options(pure, readonly, nostack, preserves_flags),
            ),
        }
    }
    values
}
