//! Products with panels of quantized weights, with NEON.

use std::{
    arch::{aarch64::*, asm},
    ops::Range,
};

use crate::kernels::{
    arch::tiles::quantized::{check, for_tiles},
    layout::{
        activations::{ActivationTile, GROUP, QuantRows},
        codes::{CodeFormat, CodeLine, PanelFactors, QuantPanel, ROWS},
    },
};

/// Rows of a register, which holds 4 codes or a sum for each.
const LANES: usize = 4;

/// Defines a version of `quantized::multiply_panels`.
macro_rules! panels {
    ($(#[$doc:meta])* $name:ident, $features:literal, $dot:ty) => {
        $(#[$doc])*
        pub fn $name<'a, C: CodeFormat, const GROUPS: usize>(
            panels: Range<usize>,
            panel: impl Fn(usize) -> QuantPanel<'a>,
            x: &QuantRows,
            mut write: impl FnMut(&[[f32; ROWS]]),
        ) {
            #[target_feature(enable = $features)]
            unsafe fn multiply<const T: usize, C: CodeFormat, const GROUPS: usize>(
                panel: &QuantPanel<'_>,
                x: &ActivationTile<'_, T>,
                products: &mut [[f32; ROWS]; T],
            ) {
                // SAFETY: passed on.
                unsafe { tile::<$dot, T, C, GROUPS>(panel, x, products) }
            }
            for i in panels {
                let panel = panel(i);
                check::<C, GROUPS>(&panel, x.blocks());
                // SAFETY: the `Isa` exists only where its features were detected, and `check` found all blocks in every
                // slice.
                unsafe { for_tiles!(&panel, x, write, multiply::<C, GROUPS>) }
            }
        }
    };
}

panels! {
    /// Needs NEON.
    panels_neon, "neon", PairwiseDot
}
panels! {
    /// Needs NEON and its dot products.
    panels_dotprod, "neon,dotprod", SdotDot
}

/// # Safety
/// The machine has the instructions of `D`, and `check` passed.
#[inline(always)]
unsafe fn tile<D: Dot, const T: usize, C: CodeFormat, const GROUPS: usize>(
    panel: &QuantPanel<'_>,
    x: &ActivationTile<'_, T>,
    products: &mut [[f32; ROWS]; T],
) {
    // SAFETY: passed on; the rows are inside the panel.
    unsafe {
        if T <= 2 {
            rows::<D, T, C, GROUPS, 4>(panel, x, 0, products);
        } else {
            // Sums of all rows would not fit into the registers.
            rows::<D, T, C, GROUPS, 2>(panel, x, 0, products);
            rows::<D, T, C, GROUPS, 2>(panel, x, ROWS / 2, products);
        }
    }
}

/// Computes the products of `N` registers of rows from `first` on.
///
/// # Safety
/// As above, and the rows exist.
#[inline(always)]
unsafe fn rows<D: Dot, const T: usize, C: CodeFormat, const GROUPS: usize, const N: usize>(
    panel: &QuantPanel<'_>,
    x: &ActivationTile<'_, T>,
    first: usize,
    products: &mut [[f32; ROWS]; T],
) {
    // Codes that do not fit into seven bits become signed by their bias.
    let biased = C::TABLE || !C::NIBBLES;
    // SAFETY: every slice holds the groups of block `b`, and the rows are inside lines and lanes.
    unsafe {
        let bias = vdupq_n_u8(panel.bias);
        let table = vsubq_u8(vld1q_u8(panel.table.unwrap_or(&[0; 16]).as_ptr()), bias);
        let mut sums = [[vdupq_n_f32(0.0); N]; T];
        for (b, x_scales) in x.scales.iter().enumerate() {
            let mut dots = [[vdupq_n_s32(0); N]; T];
            if !biased {
                dots = std::array::from_fn(|t| [vdupq_n_s32(x_scales[t].start); N]);
            }
            for g in b * GROUPS..(b + 1) * GROUPS {
                let line = panel.codes.as_ptr().add(if C::NIBBLES { g / 2 } else { g }).cast::<u8>();
                let mut weights = [bias; N];
                for (n, weights) in weights.iter_mut().enumerate() {
                    let row = first + n * LANES;
                    let line = vld1q_u8(line.add(row * GROUP));
                    *weights = match (C::NIBBLES, g % 2) {
                        (false, _) => vsubq_u8(line, bias),
                        (true, 0) => vandq_u8(line, vdupq_n_u8(15)),
                        (true, _) => vshrq_n_u8::<4>(line),
                    };
                    if C::TABLE {
                        *weights = vqtbl1q_u8(table, *weights);
                    }
                    *weights = with_higher::<C>(*weights, panel.higher.as_ptr(), g, row * GROUP);
                }
                let weights = weights.map(|weights| vreinterpretq_s8_u8(weights));
                let mut codes = x.codes.as_ptr().add(g).cast::<i32>();
                let (fours, rest) = dots.as_chunks_mut::<4>();
                for dots in fours {
                    let four = vreinterpretq_s8_s32(vld1q_s32(codes));
                    codes = codes.add(4);
                    for (n, weights) in weights.into_iter().enumerate() {
                        dots[0][n] = D::add::<0>(dots[0][n], weights, four);
                        dots[1][n] = D::add::<1>(dots[1][n], weights, four);
                        dots[2][n] = D::add::<2>(dots[2][n], weights, four);
                        dots[3][n] = D::add::<3>(dots[3][n], weights, four);
                    }
                }
                for dots in rest {
                    let one = vreinterpretq_s8_s32(vld1q_dup_s32(codes));
                    codes = codes.add(1);
                    for (dots, weights) in dots.iter_mut().zip(weights) {
                        *dots = D::add::<0>(*dots, weights, one);
                    }
                }
            }
            for n in 0..N {
                let row = first + n * LANES;
                let scales = lanes(&panel.scales, b, row);
                for t in 0..T {
                    let scale = vmulq_f32(scales, vdupq_n_f32(x_scales[t].scale));
                    sums[t][n] = vfmaq_f32(sums[t][n], vcvtq_f32_s32(dots[t][n]), scale);
                }
                if let Some(offsets) = &panel.offsets {
                    let offsets = lanes(offsets, b, row);
                    for t in 0..T {
                        sums[t][n] = vfmaq_f32(sums[t][n], offsets, vdupq_n_f32(x_scales[t].sum));
                    }
                }
            }
        }
        for (sums, products) in sums.into_iter().zip(products) {
            for (sums, products) in sums.into_iter().zip(products[first..].as_chunks_mut::<LANES>().0) {
                vst1q_f32(products.as_mut_ptr(), sums);
            }
        }
    }
}

/// Adds the higher bits to the codes of a group from byte `first` on.
///
/// # Safety
/// The machine has NEON, and `higher` holds the group.
#[inline(always)]
unsafe fn with_higher<C: CodeFormat>(
    weights: uint8x16_t,
    higher: *const CodeLine,
    group: usize,
    first: usize,
) -> uint8x16_t {
    // SAFETY: passed on; `first` is a multiple of 16, so 16 bytes from there are inside a line.
    unsafe {
        match C::HIGHER {
            0 => weights,
            1 => {
                let [low, high, ..] = (higher.cast::<u64>().add(group).read() >> first).to_le_bytes();
                // Each byte is spread over eight lanes, which test one bit each.
                let bits = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
                let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
                vorrq_u8(weights, vandq_u8(vtstq_u8(bits, bit), vdupq_n_u8(16)))
            }
            _ => {
                let pairs = vld1q_u8(higher.add(group / 4).cast::<u8>().add(first));
                // A negative shift is one to the right.
                let pairs = vshlq_u8(pairs, vdupq_n_s8(4 - 2 * (group % 4) as i8));
                vorrq_u8(weights, vandq_u8(pairs, vdupq_n_u8(48)))
            }
        }
    }
}

/// As `PanelFactors::lanes`, for the rows from `row` on.
///
/// # Safety
/// The machine has NEON, and the block and the rows exist.
#[inline(always)]
unsafe fn lanes(factors: &PanelFactors<'_>, block: usize, row: usize) -> float32x4_t {
    // SAFETY: the slices hold the block.
    unsafe {
        let halves = factors.halves.as_ptr().add(block >> factors.shared).cast::<u16>().add(row);
        let halves = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
        match factors.multiples {
            None => halves,
            Some(multiples) => {
                let multiples = multiples.as_ptr().add(block).cast::<i8>().add(row).cast::<i32>().read_unaligned();
                let multiples = vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(multiples))));
                vmulq_f32(halves, vcvtq_f32_s32(vmovl_s16(multiples)))
            }
        }
    }
}

/// A way to sum the products of groups.
trait Dot {
    /// Adds to each sum its 4 weights times the 4 codes of lane `LANE`.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn add<const LANE: i32>(dots: int32x4_t, weights: int8x16_t, codes: int8x16_t) -> int32x4_t;
}

/// Pairwise additions of products of 16 bits.
struct PairwiseDot;

impl Dot for PairwiseDot {
    #[inline(always)]
    unsafe fn add<const LANE: i32>(dots: int32x4_t, weights: int8x16_t, codes: int8x16_t) -> int32x4_t {
        // SAFETY: passed on.
        unsafe {
            let codes = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(codes)));
            let low = vmull_s8(vget_low_s8(weights), vget_low_s8(codes));
            // 2 * 128 * 127 < 32768.
            vpadalq_s16(dots, vpaddq_s16(low, vmull_high_s8(weights, codes)))
        }
    }
}

/// The dot product instruction.
struct SdotDot;

impl Dot for SdotDot {
    #[inline(always)]
    unsafe fn add<const LANE: i32>(dots: int32x4_t, weights: int8x16_t, codes: int8x16_t) -> int32x4_t {
        // SAFETY: passed on.
        unsafe { add_sdot::<LANE>(dots, weights, codes) }
    }
}

/// `vdotq_laneq_s32`, which the oldest supported Rust lacks.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_sdot<const LANE: i32>(mut dots: int32x4_t, weights: int8x16_t, codes: int8x16_t) -> int32x4_t {
    // SAFETY: the machine has the instruction, which changes only `dots`.
    unsafe {
        asm!(
            "sdot {dots:v}.4s, {weights:v}.16b, {codes:v}.4b[{lane}]",
            dots = inout(vreg) dots,
            weights = in(vreg) weights,
            codes = in(vreg) codes,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    dots
}
