//! Integer products with AVX-VNNI, whose instruction multiplies unsigned weights with signed codes and adds four
//! products to a sum. Assembly, so that no other code is compiled for AVX-VNNI.

use std::arch::{asm, x86_64::*};

use super::block::{FEW, Halves, UnpackedBlock, weights};
use crate::kernels::layout::{
    activations::BlockScale,
    codes::{CodeFormat, QuantPanel},
};

/// The integer products of a block with the codes of `N` tokens out of a tile of `T`.
///
/// # Safety
/// The machine has AVX2 and AVX-VNNI, and the codes exist.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn dots<const N: usize, const T: usize, const GROUPS: usize>(
    block: &UnpackedBlock<GROUPS>,
    codes: *const i32,
    x: &[BlockScale],
) -> [Halves<__m256i>; N] {
    let mut dots = starts(x);
    if let Some(four) = dots.first_chunk_mut() {
        // SAFETY: passed on.
        unsafe { add_four::<T, GROUPS>(four, block, codes) };
        return dots;
    }
    for (g, weights) in block.magnitudes.iter().enumerate() {
        // SAFETY: passed on.
        unsafe { add_group(&mut dots, *weights, codes.add(g * T)) };
    }
    dots
}

/// As [`dots`], for block `b` of a panel and all tokens of a tile, and without storing the unpacked weights.
///
/// # Safety
/// The machine has AVX2 and AVX-VNNI, `check` passed, the panel has the block, and its codes exist.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn direct<const T: usize, C: CodeFormat, const GROUPS: usize>(
    panel: &QuantPanel<'_>,
    b: usize,
    codes: *const i32,
    x: &[BlockScale],
) -> [Halves<__m256i>; T] {
    let mut dots = starts(x);
    for g in 0..GROUPS {
        let group = b * GROUPS + g;
        // SAFETY: passed on.
        unsafe {
            let weights = [weights::<C, true>(panel, group, 0), weights::<C, true>(panel, group, 1)];
            add_group(&mut dots, weights, codes.add(g * T));
        }
    }
    dots
}

/// The starts of the dot products with some tokens.
#[inline]
#[target_feature(enable = "avx2")]
fn starts<const N: usize>(x: &[BlockScale]) -> [Halves<__m256i>; N] {
    std::array::from_fn(|t| [_mm256_set1_epi32(x[t].start); 2])
}

/// Adds the products of a group's weights with the codes of some tokens.
///
/// # Safety
/// The machine has AVX2 and AVX-VNNI, and the codes exist.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_group<const N: usize>(dots: &mut [Halves<__m256i>; N], weights: Halves<__m256i>, codes: *const i32) {
    for (t, dots) in dots.iter_mut().enumerate() {
        // SAFETY: passed on.
        let codes = _mm256_set1_epi32(unsafe { codes.add(t).read_unaligned() });
        for (dots, weights) in dots.iter_mut().zip(weights) {
            // SAFETY: the machine has the instruction, which changes only the sums.
            unsafe {
                asm!(
                    "{{vex}} vpdpbusd {dots}, {weights}, {codes}",
                    dots = inout(ymm_reg) *dots,
                    weights = in(ymm_reg) weights,
                    codes = in(ymm_reg) codes,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
    }
}

/// Adds the products of a block's weights with the codes of four tokens out of a tile of `T`. Assembly also for the
/// same reason as in `dots::pairs_of_four`.
///
/// # Safety
/// The machine has AVX2 and AVX-VNNI, and the codes exist.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_four<const T: usize, const GROUPS: usize>(
    dots: &mut [Halves<__m256i>; FEW],
    block: &UnpackedBlock<GROUPS>,
    codes: *const i32,
) {
    let [[a0, a1], [b0, b1], [c0, c1], [d0, d1]] = dots;
    // SAFETY: the code only reads the weights and four codes for each token and group.
    unsafe {
        asm!(
            ".macro token g, at, sums, others",
            "vpbroadcastd {x}, dword ptr [{codes} + {stride} * \\g + \\at]",
            "{{vex}} vpdpbusd \\sums, {w0}, {x}",
            "{{vex}} vpdpbusd \\others, {w1}, {x}",
            ".endm",
            ".irp g, 0, 1, 2, 3, 4, 5, 6, 7",
            ".if \\g < {count}",
            "vmovdqa {w0}, ymmword ptr [{weights} + 64 * \\g]",
            "vmovdqa {w1}, ymmword ptr [{weights} + 64 * \\g + 32]",
            "token \\g, 0, {a0}, {a1}",
            "token \\g, 4, {b0}, {b1}",
            "token \\g, 8, {c0}, {c1}",
            "token \\g, 12, {d0}, {d1}",
            ".endif",
            ".endr",
            ".purgem token",
            weights = in(reg) block.magnitudes.as_ptr(),
            codes = in(reg) codes,
            count = const GROUPS,
            stride = const 4 * T,
            x = out(ymm_reg) _, w0 = out(ymm_reg) _, w1 = out(ymm_reg) _,
            a0 = inout(ymm_reg) *a0, a1 = inout(ymm_reg) *a1, b0 = inout(ymm_reg) *b0, b1 = inout(ymm_reg) *b1,
            c0 = inout(ymm_reg) *c0, c1 = inout(ymm_reg) *c1, d0 = inout(ymm_reg) *d0, d1 = inout(ymm_reg) *d1,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
