//! Products with panels of floating-point values, with AVX2 and AVX-512.

use std::arch::x86_64::*;

use crate::kernels::{
    arch::tiles::panels::{Vector, add_all},
    layout::{
        element::{Element, ElementType},
        panels::{Accumulators, PanelProduct},
    },
    memory::prefetch::Prefetcher,
};

/// Does as the scalar version. Needs AVX2, FMA and F16C.
pub fn add_avx2<T: Element>(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add<T: Element>(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<T, [__m256; 2], 1>(product, sums, ahead) };
    }
    // SAFETY: `Isa::Avx2` exists only where its features were detected.
    unsafe { add(product, sums, ahead) };
}

/// Does as the scalar version. Needs AVX-512F.
pub fn add_avx512<T: Element>(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "avx512f")]
    unsafe fn add<T: Element>(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<T, __m512, 4>(product, sums, ahead) };
    }
    // SAFETY: as above, with `Isa::Avx512` and the better ones.
    unsafe { add(product, sums, ahead) };
}

impl<T: Element> Vector<T> for [__m256; 2] {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: passed on.
        unsafe { [load_8(from), load_8(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const f32) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn splat(factor: f32) -> Self {
        // SAFETY: passed on.
        unsafe { [_mm256_set1_ps(factor); 2] }
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

/// Loads 8 elements and widens them.
///
/// # Safety
/// The machine has AVX2 and F16C, and 8 elements are at `from`.
#[inline(always)]
unsafe fn load_8<T: Element>(from: *const T) -> __m256 {
    // SAFETY: passed on; `Element` is sealed, so `TYPE` is the type of the elements.
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

impl<T: Element> Vector<T> for __m512 {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: passed on; `Element` is sealed, so `TYPE` is the type of the elements.
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
    unsafe fn load_sums(from: *const f32) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(factor: f32) -> Self {
        // SAFETY: passed on.
        unsafe { _mm512_set1_ps(factor) }
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
