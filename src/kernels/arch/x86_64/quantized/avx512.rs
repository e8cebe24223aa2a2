//! Quantized products with AVX-512: a register holds a sum for each row of a panel.

use std::{arch::x86_64::*, ops::Range};

use super::prefetch::{AHEAD, PanelPrefetcher, is_signed, waits_for_memory};
use crate::kernels::{
    arch::tiles::quantized::{check, for_tiles},
    layout::{
        activations::{ActivationTile, QuantRows},
        codes::{CodeFormat, CodeLine, PanelFactors, QuantPanel, ROWS},
    },
};

/// Defines a version of `quantized::multiply_panels` for some features, with or without VNNI.
macro_rules! panels {
    ($name:ident, $features:literal, $vnni:literal) => {
        pub fn $name<'a, C: CodeFormat, const GROUPS: usize>(
            panels: Range<usize>,
            panel: impl Fn(usize) -> QuantPanel<'a>,
            x: &QuantRows,
            write: impl FnMut(&[[f32; ROWS]]),
        ) {
            #[target_feature(enable = $features)]
            unsafe fn tile<const T: usize, C: CodeFormat, const GROUPS: usize>(
                panel: &QuantPanel<'_>,
                x: &ActivationTile<'_, T>,
                products: &mut [[f32; ROWS]; T],
            ) {
                // SAFETY: passed on.
                unsafe { multiply::<T, C, GROUPS, $vnni>(panel, x, products) }
            }
            #[target_feature(enable = $features)]
            unsafe fn all<'a, C: CodeFormat, const GROUPS: usize>(
                panels: Range<usize>,
                panel: impl Fn(usize) -> QuantPanel<'a>,
                x: &QuantRows,
                mut write: impl FnMut(&[[f32; ROWS]]),
            ) {
                for i in panels {
                    let panel = panel(i);
                    check::<C, GROUPS>(&panel, x.blocks());
                    // SAFETY: the features are passed on, and `check` found all blocks in every slice.
                    unsafe { for_tiles!(&panel, x, write, tile::<C, GROUPS>) }
                }
            }
            // SAFETY: `Isa` names an instruction set only where its features were detected.
            unsafe { all::<C, GROUPS>(panels, panel, x, write) }
        }
    };
}

panels!(panels_avx512, "avx512f,avx512bw", false);
panels!(panels_vnni, "avx512f,avx512bw,avx512vnni", true);

/// Computes the products of a panel with a tile.
///
/// # Safety
/// The machine has AVX-512, with VNNI if `VNNI`, and `check` passed.
#[inline(always)]
unsafe fn multiply<const T: usize, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
    panel: &QuantPanel<'_>,
    x: &ActivationTile<'_, T>,
    products: &mut [[f32; ROWS]; T],
) {
    let table = panel.table.unwrap_or(&[0; 16]);
    // Each tile prefetches its share of the next panels, so that memory is busy during all tiles.
    let mut ahead = PanelPrefetcher::new(panel, (x.index, x.count), 1, waits_for_memory::<C>(T) && x.count == 1);
    // SAFETY: every slice holds the groups of block `b`.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); T];
        let bias = _mm512_set1_epi8(panel.bias as i8);
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        for (b, x_scales) in x.scales.iter().enumerate() {
            // Loaded first, since compilers would otherwise move integer products behind branches.
            let scales = lanes(&panel.scales, b);
            let offsets = panel.offsets.as_ref().map_or(_mm512_setzero_ps(), |offsets| lanes(offsets, b));
            let mut dots = [_mm512_setzero_si512(); T];
            for t in 0..T {
                dots[t] = _mm512_set1_epi32(if is_signed::<C, VNNI>() { 0 } else { x_scales[t].start });
            }
            for g in b * GROUPS..(b + 1) * GROUPS {
                let line = panel.codes.as_ptr().add(if C::NIBBLES { g / 2 } else { g });
                if !C::NIBBLES || g % 2 == 0 {
                    ahead.ask();
                }
                if C::HIGHER > 0 && x.index == 0 && (g * C::HIGHER).is_multiple_of(8) {
                    ahead.ask_for(panel.higher.as_ptr().wrapping_add((g / 2 + AHEAD) * C::HIGHER / 4));
                }
                let line = _mm512_load_si512(line.cast());
                let weights = match (C::NIBBLES, g % 2) {
                    (false, _) => line,
                    (true, 0) => _mm512_and_si512(line, _mm512_set1_epi8(15)),
                    (true, _) => _mm512_and_si512(_mm512_srli_epi32(line, 4), _mm512_set1_epi8(15)),
                };
                let weights = if C::TABLE { _mm512_shuffle_epi8(table, weights) } else { weights };
                let weights = with_higher::<C>(weights, panel.higher.as_ptr(), g);
                let weights = if is_signed::<C, VNNI>() { _mm512_sub_epi8(weights, bias) } else { weights };
                let codes = x.codes.as_ptr().add(g).cast::<i32>();
                for (t, dots) in dots.iter_mut().enumerate() {
                    let codes = _mm512_set1_epi32(codes.add(t).read_unaligned());
                    *dots = match VNNI {
                        true => _mm512_dpbusd_epi32(*dots, weights, codes),
                        false => _mm512_add_epi32(*dots, sums_of_four::<C>(weights, codes)),
                    };
                }
            }
            for t in 0..T {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[t].scale));
                sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, sums[t]);
            }
            if panel.offsets.is_some() {
                for t in 0..T {
                    sums[t] = _mm512_fmadd_ps(offsets, _mm512_set1_ps(x_scales[t].sum), sums[t]);
                }
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(products[t].as_mut_ptr(), sums[t]);
        }
    }
}

/// Sums of four products, as VNNI computes them. Weights are signed if [`is_signed`] says so.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sums_of_four<C: CodeFormat>(weights: __m512i, codes: __m512i) -> __m512i {
    let (weights, codes) = match is_signed::<C, false>() {
        true => {
            let negative = _mm512_movepi8_mask(weights);
            let signed = _mm512_mask_sub_epi8(codes, negative, _mm512_setzero_si512(), codes);
            (_mm512_abs_epi8(weights), signed)
        }
        // At most 63: 2 * 63 * 127 < 32768.
        false => (weights, codes),
    };
    _mm512_madd_epi16(_mm512_maddubs_epi16(weights, codes), _mm512_set1_epi16(1))
}

/// Adds the higher bits to the codes of a group.
///
/// # Safety
/// The machine has AVX-512, and `higher` holds the group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn with_higher<C: CodeFormat>(weights: __m512i, higher: *const CodeLine, group: usize) -> __m512i {
    // SAFETY: passed on; lines are aligned.
    unsafe {
        match C::HIGHER {
            0 => weights,
            1 => {
                let bits = higher.cast::<u64>().add(group).read();
                _mm512_mask_add_epi8(weights, bits, weights, _mm512_set1_epi8(16))
            }
            _ => {
                let pairs = _mm512_load_si512(higher.add(group / 4).cast());
                let pairs = match group % 4 {
                    0 => _mm512_slli_epi32(pairs, 4),
                    1 => _mm512_slli_epi32(pairs, 2),
                    2 => pairs,
                    _ => _mm512_srli_epi32(pairs, 2),
                };
                // weights | pairs & 48
                _mm512_ternarylogic_epi32::<0xf8>(weights, pairs, _mm512_set1_epi8(48))
            }
        }
    }
}

/// Does as `PanelFactors::lanes`.
///
/// # Safety
/// The machine has AVX-512, and the block exists.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn lanes(factors: &PanelFactors<'_>, block: usize) -> __m512 {
    // SAFETY: the slices hold the block.
    unsafe {
        match factors.multiples {
            None => {
                let halves = factors.halves.as_ptr().add(block >> factors.shared);
                _mm512_cvtph_ps(_mm256_loadu_si256(halves.cast()))
            }
            Some(multiples) => {
                let halves = factors.halves.as_ptr().add(block >> factors.shared);
                let halves = _mm512_cvtph_ps(_mm256_loadu_si256(halves.cast()));
                let multiples = _mm_loadu_si128(multiples.as_ptr().add(block).cast());
                _mm512_mul_ps(halves, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(multiples)))
            }
        }
    }
}
