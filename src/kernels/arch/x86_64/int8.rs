//! Products with panels of 8-bit codes, with AVX2 and AVX-512.

use std::arch::x86_64::*;

use crate::kernels::{
    arch::tiles::{
        int8::bits,
        panels::{Vector, add_all},
    },
    layout::panels::{Accumulators, PanelProduct},
    memory::prefetch::Prefetcher,
};

/// Does as the scalar version. Needs AVX2.
pub fn add_avx2(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "avx2")]
    unsafe fn add(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<i8, [__m256i; 2], 1>(product, sums, ahead) };
    }
    // SAFETY: `Isa::Avx2` exists only where AVX2 was detected.
    unsafe { add(product, sums, ahead) };
}

/// Does as the scalar version. Needs AVX2 and AVX-VNNI.
pub fn add_avx_vnni(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn add(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<i8, Vnni<[__m256i; 2]>, 1>(product, sums, ahead) };
    }
    // SAFETY: as above, with `Isa::AvxVnni`.
    unsafe { add(product, sums, ahead) };
}

/// Does as the scalar version. Needs AVX-512F and BW.
pub fn add_avx512(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn add(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<i8, __m512i, 4>(product, sums, ahead) };
    }
    // SAFETY: as above, with `Isa::Avx512`.
    unsafe { add(product, sums, ahead) };
}

/// Does as the scalar version. Needs AVX-512F, BW and VNNI.
pub fn add_vnni(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn add(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<i8, Vnni<__m512i>, 4>(product, sums, ahead) };
    }
    // SAFETY: as above, with `Isa::Avx512Vnni` and `Isa::Avx512Bf16`.
    unsafe { add(product, sums, ahead) };
}

/// Registers of codes that are widened to 16 bits.
impl Vector<i8> for [__m256i; 2] {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const i8) -> Self {
        // SAFETY: passed on.
        unsafe { [from, from.add(16)].map(|from| _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())] }
    }

    #[inline(always)]
    unsafe fn splat(factor: [i16; 2]) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_set1_epi32(bits(factor)); 2] }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe {
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(self[0], values[0])),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(self[1], values[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: passed on.
        unsafe {
            _mm256_storeu_si256(to.cast(), self[0]);
            _mm256_storeu_si256(to.add(8).cast(), self[1]);
        }
    }
}

impl Vector<i8> for __m512i {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const i8) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(factor: [i16; 2]) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_set1_epi32(bits(factor)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(self, values)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: passed on.
        unsafe { _mm512_storeu_si512(to.cast(), self) };
    }
}

/// Registers for VNNI, which multiplies and adds in one instruction.
#[derive(Clone, Copy)]
struct Vnni<V>(V);

impl<V: MultiplyAdd> Vector<i8> for Vnni<V> {
    #[inline(always)]
    fn zero() -> Self {
        Self(V::zero())
    }

    #[inline(always)]
    unsafe fn load(from: *const i8) -> Self {
        // SAFETY: passed on.
        Self(unsafe { V::load(from) })
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self {
        // SAFETY: passed on.
        Self(unsafe { V::load_sums(from) })
    }

    #[inline(always)]
    unsafe fn splat(factor: [i16; 2]) -> Self {
        // SAFETY: passed on.
        Self(unsafe { V::splat(factor) })
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        Self(unsafe { V::multiply_add_at_once(self.0, values.0, sums.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: passed on.
        unsafe { self.0.store(to) };
    }
}

/// Registers that VNNI takes.
trait MultiplyAdd: Vector<i8> {
    /// # Safety
    /// The machine has VNNI for registers of this length.
    unsafe fn multiply_add_at_once(self, values: Self, sums: Self) -> Self;
}

impl MultiplyAdd for [__m256i; 2] {
    #[inline(always)]
    unsafe fn multiply_add_at_once(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe {
            [_mm256_dpwssd_avx_epi32(sums[0], self[0], values[0]), _mm256_dpwssd_avx_epi32(sums[1], self[1], values[1])]
        }
    }
}

impl MultiplyAdd for __m512i {
    #[inline(always)]
    unsafe fn multiply_add_at_once(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_dpwssd_epi32(sums, self, values) }
    }
}
