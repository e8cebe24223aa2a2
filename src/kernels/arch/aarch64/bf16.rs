//! Products with panels of bfloat16, with NEON.

use std::arch::aarch64::*;

use super::panels::Lanes;
use crate::kernels::{
    arch::tiles::bf16::{Widen, Widened, add_panels, check},
    layout::bf16::{Bf16Product, PairLine, WidenedFactor},
};

/// Does as the scalar `Bf16Product::add_to`. Needs NEON.
pub fn add_neon<F: WidenedFactor>(product: &Bf16Product<'_, F>, sums: &mut [f32], sum_stride: usize) {
    #[target_feature(enable = "neon")]
    unsafe fn add<F: WidenedFactor>(product: &Bf16Product<'_, F>, sums: *mut f32, sum_stride: usize) {
        // SAFETY: passed on.
        unsafe { add_panels::<F, Widened<Lanes>, 1>(product, 0..product.panels.len(), sums, sum_stride) };
    }
    check(product, sums, sum_stride);
    // SAFETY: `Isa::Neon` exists only where NEON was detected, and `check` passed.
    unsafe { add(product, sums.as_mut_ptr(), sum_stride) };
}

impl Widen for Lanes {
    #[inline(always)]
    unsafe fn halves(line: *const PairLine, half: usize) -> Self {
        // SAFETY: passed on; a line fills four registers.
        unsafe {
            let line = line.cast::<u32>();
            [0, 4, 8, 12].map(|at| {
                let pairs = vld1q_u32(line.add(at));
                vreinterpretq_f32_u32(match half {
                    0 => vshlq_n_u32::<16>(pairs),
                    _ => vandq_u32(pairs, vdupq_n_u32(0xffff_0000)),
                })
            })
        }
    }
}
