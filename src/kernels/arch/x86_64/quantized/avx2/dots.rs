//! Integer products with AVX2 alone. Its instruction multiplies unsigned with signed bytes, so magnitudes of weights
//! are multiplied with codes that take the weights' signs. Sums of two products have 16 bits.

use std::arch::{asm, x86_64::*};

use super::block::{FEW, Halves, UnpackedBlock, weights};
use crate::kernels::{
    arch::x86_64::quantized::prefetch::is_signed,
    layout::{
        activations::BlockScale,
        codes::{CodeFormat, QuantPanel},
    },
};

/// Groups of a block whose sums of two products fit into 16 bits together. Weights of four bits give `2 * 15 * 127` at
/// most, of five bits `2 * 31 * 127`, and so on. Signed weights give between `-2 * 128 * 128`, which just fits, and `2
/// * 127 * 127`.
const fn span<C: CodeFormat>(groups: usize) -> usize {
    let most = match C::HIGHER {
        _ if is_signed::<C, false>() => 1,
        0 => 8,
        1 => 4,
        _ => 2,
    };
    if groups < most { groups } else { most }
}

/// The integer products of a block with the codes of `N` tokens out of a tile of `T`.
///
/// # Safety
/// The machine has AVX2, and the codes exist.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn dots<const N: usize, const T: usize, C: CodeFormat, const GROUPS: usize>(
    block: &UnpackedBlock<GROUPS>,
    codes: *const i32,
    x: &[BlockScale],
) -> [Halves<__m256i>; N] {
    // SAFETY: `codes` holds the groups and tokens.
    let code = |g: usize, t: usize| _mm256_set1_epi32(unsafe { codes.add(g * T + t).read_unaligned() });
    if is_signed::<C, false>() {
        let mut dots = [block.lacking; N];
        if let Some(four) = dots.first_chunk_mut() {
            // SAFETY: passed on.
            unsafe { add_signed::<T, GROUPS>(four, block, codes) };
            return dots;
        }
        for g in 0..GROUPS {
            for (t, dots) in dots.iter_mut().enumerate() {
                let codes = code(g, t);
                for (half, dots) in dots.iter_mut().enumerate() {
                    let signed = _mm256_xor_si256(codes, block.negative[g][half]);
                    let pairs = _mm256_maddubs_epi16(block.magnitudes[g][half], signed);
                    *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                }
            }
        }
        return dots;
    }
    let mut dots = [[_mm256_setzero_si256(); 2]; N];
    let span = const { span::<C>(GROUPS) };
    for (i, weights) in block.magnitudes.chunks_exact(span).enumerate() {
        let mut pairs = [[_mm256_setzero_si256(); 2]; N];
        match pairs.first_chunk_mut() {
            // SAFETY: passed on; `weights` holds a span.
            Some(pairs) => *pairs = unsafe { pairs_of_four::<T, C, GROUPS>(weights.as_ptr(), codes.add(i * span * T)) },
            None => {
                for (g, weights) in weights.iter().enumerate() {
                    for (t, pairs) in pairs.iter_mut().enumerate() {
                        let codes = code(i * span + g, t);
                        for (pairs, weights) in pairs.iter_mut().zip(weights) {
                            *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(*weights, codes));
                        }
                    }
                }
            }
        }
        add_sums(&mut dots, pairs);
    }
    add_starts(&mut dots, x);
    dots
}

/// As [`dots`], for block `b` of a panel and all tokens of a tile, and without storing the unpacked weights.
///
/// # Safety
/// The machine has AVX2, `check` passed, the panel has the block, and its codes exist.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn direct<const T: usize, C: CodeFormat, const GROUPS: usize>(
    panel: &QuantPanel<'_>,
    b: usize,
    codes: *const i32,
    x: &[BlockScale],
) -> [Halves<__m256i>; T] {
    let mut dots = [[_mm256_setzero_si256(); 2]; T];
    let span = const { span::<C>(GROUPS) };
    for first in (0..GROUPS).step_by(span) {
        let mut pairs = [[_mm256_setzero_si256(); 2]; T];
        for g in first..first + span {
            for half in 0..2 {
                // SAFETY: passed on.
                let weights = unsafe { weights::<C, false>(panel, b * GROUPS + g, half) };
                for (t, pairs) in pairs.iter_mut().enumerate() {
                    // SAFETY: passed on.
                    let codes = _mm256_set1_epi32(unsafe { codes.add(g * T + t).read_unaligned() });
                    let products = match is_signed::<C, false>() {
                        true => _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(codes, weights)),
                        false => _mm256_maddubs_epi16(weights, codes),
                    };
                    pairs[half] = _mm256_add_epi16(pairs[half], products);
                }
            }
        }
        add_sums(&mut dots, pairs);
    }
    if !is_signed::<C, false>() {
        add_starts(&mut dots, x);
    }
    dots
}

/// Adds the starts of the dot products, at the end, when sums of pairs no longer occupy registers.
#[inline]
#[target_feature(enable = "avx2")]
fn add_starts<const N: usize>(dots: &mut [Halves<__m256i>; N], x: &[BlockScale]) {
    for (dots, x) in dots.iter_mut().zip(x) {
        let start = _mm256_set1_epi32(x.start);
        *dots = [_mm256_add_epi32(dots[0], start), _mm256_add_epi32(dots[1], start)];
    }
}

/// Adds sums of pairs, widened, to dot products.
#[inline]
#[target_feature(enable = "avx2")]
fn add_sums<const N: usize>(dots: &mut [Halves<__m256i>; N], pairs: [Halves<__m256i>; N]) {
    for (dots, pairs) in dots.iter_mut().zip(pairs) {
        for (dots, pairs) in dots.iter_mut().zip(pairs) {
            *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
}

/// Sums of pairs for unsigned weights and the codes of four tokens out of a tile of `T`, over as many groups as 16 bits
/// hold.
///
/// Assembly keeps compilers from broadcasting all tokens' codes first, which leaves no registers for sums.
///
/// # Safety
/// The machine has AVX2, `weights` holds the groups, and `codes` their codes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pairs_of_four<const T: usize, C: CodeFormat, const GROUPS: usize>(
    weights: *const Halves<__m256i>,
    codes: *const i32,
) -> [Halves<__m256i>; FEW] {
    let (a0, a1, b0, b1, c0, c1, d0, d1);
    // SAFETY: the code only reads the weights and four codes for each token and group.
    unsafe {
        asm!(
            ".macro token g, at, sums, others",
            "vpbroadcastd {x}, dword ptr [{codes} + {stride} * \\g + \\at]",
            ".if \\g",
            "vpmaddubsw {y}, {w0}, {x}",
            "vpmaddubsw {x}, {w1}, {x}",
            "vpaddw \\sums, \\sums, {y}",
            "vpaddw \\others, \\others, {x}",
            ".else",
            "vpmaddubsw \\sums, {w0}, {x}",
            "vpmaddubsw \\others, {w1}, {x}",
            ".endif",
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
            weights = in(reg) weights,
            codes = in(reg) codes,
            count = const span::<C>(GROUPS),
            stride = const 4 * T,
            x = out(ymm_reg) _, y = out(ymm_reg) _, w0 = out(ymm_reg) _, w1 = out(ymm_reg) _,
            a0 = out(ymm_reg) a0, a1 = out(ymm_reg) a1, b0 = out(ymm_reg) b0, b1 = out(ymm_reg) b1,
            c0 = out(ymm_reg) c0, c1 = out(ymm_reg) c1, d0 = out(ymm_reg) d0, d1 = out(ymm_reg) d1,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [[a0, a1], [b0, b1], [c0, c1], [d0, d1]]
}

/// Adds the products of a block's signed weights with the codes of four tokens out of a tile of `T`, without the
/// correction [`UnpackedBlock::lacking`]. Assembly for the same reason as in [`pairs_of_four`].
///
/// # Safety
/// The machine has AVX2, and the codes exist.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_signed<const T: usize, const GROUPS: usize>(
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
            "vpxor {y}, {x}, {n0}",
            "vpxor {x}, {x}, {n1}",
            "vpmaddubsw {y}, {w0}, {y}",
            "vpmaddubsw {x}, {w1}, {x}",
            "vpmaddwd {y}, {y}, {ones}",
            "vpmaddwd {x}, {x}, {ones}",
            "vpaddd \\sums, \\sums, {y}",
            "vpaddd \\others, \\others, {x}",
            ".endm",
            ".irp g, 0, 1, 2, 3, 4, 5, 6, 7",
            ".if \\g < {count}",
            "vmovdqa {w0}, ymmword ptr [{weights} + 64 * \\g]",
            "vmovdqa {w1}, ymmword ptr [{weights} + 64 * \\g + 32]",
            "vmovdqa {n0}, ymmword ptr [{negative} + 64 * \\g]",
            "vmovdqa {n1}, ymmword ptr [{negative} + 64 * \\g + 32]",
            "token \\g, 0, {a0}, {a1}",
            "token \\g, 4, {b0}, {b1}",
            "token \\g, 8, {c0}, {c1}",
            "token \\g, 12, {d0}, {d1}",
            ".endif",
            ".endr",
            ".purgem token",
            weights = in(reg) block.magnitudes.as_ptr(),
            negative = in(reg) block.negative.as_ptr(),
            codes = in(reg) codes,
            count = const GROUPS,
            stride = const 4 * T,
            ones = in(ymm_reg) _mm256_set1_epi16(1),
            x = out(ymm_reg) _, y = out(ymm_reg) _, w0 = out(ymm_reg) _, w1 = out(ymm_reg) _,
            n0 = out(ymm_reg) _, n1 = out(ymm_reg) _,
            a0 = inout(ymm_reg) *a0, a1 = inout(ymm_reg) *a1, b0 = inout(ymm_reg) *b0, b1 = inout(ymm_reg) *b1,
            c0 = inout(ymm_reg) *c0, c1 = inout(ymm_reg) *c1, d0 = inout(ymm_reg) *d0, d1 = inout(ymm_reg) *d1,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
