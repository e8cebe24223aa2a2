//! Products with panels of floating-point values, with NEON.

use std::arch::aarch64::*;

use crate::kernels::{
    arch::tiles::panels::{Vector, add_all},
    layout::{
        element::{Element, ElementType},
        panels::{Accumulators, PanelProduct},
    },
    memory::prefetch::Prefetcher,
};

/// Registers of [`LANES`](crate::kernels::layout::panels::LANES) values.
pub type Lanes = [float32x4_t; 4];

/// Does as the scalar version. Needs NEON.
pub fn add_neon<T: Element>(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>) {
    #[target_feature(enable = "neon")]
    unsafe fn add<T: Element>(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>) {
        // SAFETY: passed on.
        unsafe { add_all::<T, Lanes, 1>(product, sums, ahead) };
    }
    // SAFETY: `Isa::Neon` exists only where NEON was detected.
    unsafe { add(product, sums, ahead) };
}

impl<T: Element> Vector<T> for Lanes {
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: all bit patterns are values of vectors.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: passed on.
        unsafe { [load_4(from), load_4(from.add(4)), load_4(from.add(8)), load_4(from.add(12))] }
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const f32) -> Self {
        // SAFETY: passed on.
        unsafe { [0, 4, 8, 12].map(|at| vld1q_f32(from.add(at))) }
    }

    #[inline(always)]
    unsafe fn splat(factor: f32) -> Self {
        // SAFETY: passed on.
        unsafe { [vdupq_n_f32(factor); 4] }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, values: Self, sums: Self) -> Self {
        // SAFETY: passed on.
        unsafe {
            [
                vfmaq_f32(sums[0], self[0], values[0]),
                vfmaq_f32(sums[1], self[1], values[1]),
                vfmaq_f32(sums[2], self[2], values[2]),
                vfmaq_f32(sums[3], self[3], values[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, part) in self.into_iter().enumerate() {
            // SAFETY: passed on.
            unsafe { vst1q_f32(to.add(4 * i), part) };
        }
    }
}

/// Loads 4 elements and widens them.
///
/// # Safety
/// The machine has NEON, and 4 elements are at `from`.
#[inline(always)]
unsafe fn load_4<T: Element>(from: *const T) -> float32x4_t {
    // SAFETY: passed on; `Element` is sealed, so `TYPE` is the type of the elements.
    unsafe {
        match T::TYPE {
            ElementType::F32 => vld1q_f32(from.cast()),
            ElementType::F16 => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.cast()))),
            ElementType::Bf16 => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))),
        }
    }
}
