//! Products with panels of 8-bit codes, with NEON.

use std::arch::aarch64::*;

use crate::kernels::{
    arch::tiles::{
        int8::bits,
        panels::{Vector, add_all},
    },
    layout::panels::{Accumulators, PanelProduct},
    memory::prefetch::Prefetcher,
};

/// Does as the scalar version. Needs NEON.
pub fn add_neon(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "neon")]
    unsafe fn add(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<i8, [int32x4_t; 4], 1>(product, sums, ahead) };
    }
    // SAFETY: `Isa::Neon` exists only where NEON was detected.
    unsafe { add(product, sums, ahead) };
}

/// Registers of codes that are widened to 16 bits.
impl Vector<i8> for [int32x4_t; 4] {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const i8) -> Self {
        // SAFETY: passed on.
        unsafe { [0, 8, 16, 24].map(|at| vreinterpretq_s32_s16(vmovl_s8(vld1_s8(from.add(at))))) }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const i32) -> Self {
        // SAFETY: passed on.
        unsafe { [0, 4, 8, 12].map(|at| vld1q_s32(from.add(at))) }
    }

    #[inline(always)]
    unsafe fn splat(factor: [i16; 2]) -> Self {
        // SAFETY: passed on.
        unsafe { [vdupq_n_s32(bits(factor)); 4] }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        let mut added = sums;
        for ((sums, factors), values) in added.iter_mut().zip(self).zip(values) {
            // SAFETY: passed on.
            unsafe {
                let (factors, values) = (vreinterpretq_s16_s32(factors), vreinterpretq_s16_s32(values));
                let low = vmull_s16(vget_low_s16(factors), vget_low_s16(values));
                let high = vmull_high_s16(factors, values);
                *sums = vaddq_s32(*sums, vpaddq_s32(low, high));
            }
        }
        added
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        for (i, part) in self.into_iter().enumerate() {
            // SAFETY: passed on.
            unsafe { vst1q_s32(to.add(4 * i), part) };
        }
    }
}
