use std::arch::x86_64::*;

use half::f16;

use crate::kernels::quantized::{BlockScale, GROUP, Lanes, Panel, QuantRow, ROWS, quantize_blocks};

/// As `quantized::scalar` for each token. The machine must have AVX2 and FMA, which `Isa::detect`
/// made sure of.
pub fn products_avx2<const T: usize, const NIBBLES: bool, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &[QuantRow<'_>; T],
) -> [[f32; ROWS]; T] {
    check::<NIBBLES, GROUPS>(panel, x);
    // SAFETY: `Isa::Avx2` exists only where AVX2 and FMA were detected, and `check` made sure that
    // every slice holds all blocks.
    unsafe { avx2::<T, NIBBLES, GROUPS>(panel, x) }
}

/// As `quantized::scalar` for each token. The machine must have AVX-512 VNNI.
pub fn products_avx512<const T: usize, const NIBBLES: bool, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &[QuantRow<'_>; T],
) -> [[f32; ROWS]; T] {
    check::<NIBBLES, GROUPS>(panel, x);
    // SAFETY: as above, with `Isa::Avx512Vnni`.
    unsafe { avx512::<T, NIBBLES, GROUPS>(panel, x) }
}

/// Every slice holds the blocks that there are scales for.
fn check<const NIBBLES: bool, const GROUPS: usize>(panel: &Panel<'_>, x: &[QuantRow<'_>]) {
    let groups = panel.scales.len() * GROUPS;
    assert!(panel.codes.len() >= if NIBBLES { groups / 2 } else { groups });
    assert!(panel.offsets.is_none_or(|offsets| offsets.len() >= panel.scales.len()));
    assert!(x.iter().all(|x| x.codes.len() >= groups * GROUP && x.scales.len() >= panel.scales.len()));
}

/// # Safety
/// AVX-512 VNNI is there, and `check` passed.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512<const T: usize, const NIBBLES: bool, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &[QuantRow<'_>; T],
) -> [[f32; ROWS]; T] {
    let mut sums = [_mm512_setzero_ps(); T];
    // SAFETY: block `b` of every slice is inside it.
    unsafe {
        for b in 0..panel.scales.len() {
            let mut dots = [_mm512_setzero_si512(); T];
            for t in 0..T {
                dots[t] = _mm512_set1_epi32(x[t].scales.get_unchecked(b).start);
            }
            for g in b * GROUPS..(b + 1) * GROUPS {
                let line = panel.codes.as_ptr().add(if NIBBLES { g / 2 } else { g });
                let line = _mm512_load_si512(line.cast());
                let weights = match (NIBBLES, g % 2) {
                    (false, _) => line,
                    (true, 0) => _mm512_and_si512(line, _mm512_set1_epi8(15)),
                    (true, _) => _mm512_and_si512(_mm512_srli_epi32(line, 4), _mm512_set1_epi8(15)),
                };
                for t in 0..T {
                    let codes = _mm512_set1_epi32(x[t].codes.as_ptr().cast::<i32>().add(g).read_unaligned());
                    dots[t] = _mm512_dpbusd_epi32(dots[t], weights, codes);
                }
            }
            let scales = _mm512_load_ps(panel.scales.as_ptr().add(b).cast());
            for t in 0..T {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x[t].scales.get_unchecked(b).scale));
                sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, sums[t]);
            }
            if let Some(offsets) = panel.offsets {
                let offsets = _mm512_load_ps(offsets.as_ptr().add(b).cast());
                for t in 0..T {
                    let sum = _mm512_set1_ps(x[t].scales.get_unchecked(b).sum);
                    sums[t] = _mm512_fmadd_ps(offsets, sum, sums[t]);
                }
            }
        }
        let mut products = [[0f32; ROWS]; T];
        for t in 0..T {
            _mm512_storeu_ps(products[t].as_mut_ptr(), sums[t]);
        }
        products
    }
}

/// # Safety
/// AVX2 and FMA are there, and `check` passed.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const T: usize, const NIBBLES: bool, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &[QuantRow<'_>; T],
) -> [[f32; ROWS]; T] {
    let mut products = [[0f32; ROWS]; T];
    for first in [0, ROWS / 2] {
        // SAFETY: passed on; both halves of a panel have 8 rows.
        unsafe { avx2_half::<T, NIBBLES, GROUPS>(panel, x, first, &mut products) }
    }
    products
}

/// The rows `first` to `first + 8`.
///
/// # Safety
/// AVX2 and FMA are there, `check` passed, and `first` is 0 or 8.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_half<const T: usize, const NIBBLES: bool, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &[QuantRow<'_>; T],
    first: usize,
    products: &mut [[f32; ROWS]; T],
) {
    let ones = _mm256_set1_epi16(1);
    let bias = _mm256_set1_epi8(panel.bias as i8);
    let mut sums = [_mm256_setzero_ps(); T];
    // SAFETY: block `b` of every slice is inside it, and a half of a panel inside its lines and lanes.
    unsafe {
        for b in 0..panel.scales.len() {
            // Of nibbles the sums of pairs, over the whole block: 8 * 2 * 15 * 127 < 32768.
            let mut dots = [_mm256_setzero_si256(); T];
            for g in b * GROUPS..(b + 1) * GROUPS {
                let line = panel.codes.as_ptr().add(if NIBBLES { g / 2 } else { g });
                let line = _mm256_load_si256(line.cast::<u8>().add(first * GROUP).cast());
                let weights = match (NIBBLES, g % 2) {
                    (false, _) => _mm256_sub_epi8(line, bias),
                    (true, 0) => _mm256_and_si256(line, _mm256_set1_epi8(15)),
                    (true, _) => _mm256_and_si256(_mm256_srli_epi32(line, 4), _mm256_set1_epi8(15)),
                };
                for t in 0..T {
                    let codes = _mm256_set1_epi32(x[t].codes.as_ptr().cast::<i32>().add(g).read_unaligned());
                    dots[t] = if NIBBLES {
                        _mm256_add_epi16(dots[t], _mm256_maddubs_epi16(weights, codes))
                    } else {
                        // Of signed weights the magnitudes: 2 * 128 * 127 < 32768.
                        let signed = _mm256_sign_epi8(codes, weights);
                        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                        _mm256_add_epi32(dots[t], _mm256_madd_epi16(pairs, ones))
                    };
                }
            }
            let scales = _mm256_load_ps(panel.scales.as_ptr().add(b).cast::<f32>().add(first));
            for t in 0..T {
                let x = x[t].scales.get_unchecked(b);
                let dots = if NIBBLES {
                    _mm256_add_epi32(_mm256_madd_epi16(dots[t], ones), _mm256_set1_epi32(x.start))
                } else {
                    dots[t]
                };
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x.scale));
                sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, sums[t]);
            }
            if let Some(offsets) = panel.offsets {
                let offsets = _mm256_load_ps(offsets.as_ptr().add(b).cast::<f32>().add(first));
                for t in 0..T {
                    let sum = _mm256_set1_ps(x[t].scales.get_unchecked(b).sum);
                    sums[t] = _mm256_fmadd_ps(offsets, sum, sums[t]);
                }
            }
        }
        for t in 0..T {
            _mm256_storeu_ps(products[t].as_mut_ptr().add(first), sums[t]);
        }
    }
}

/// As `quantized::quantize_blocks`. The machine must have AVX2.
pub fn quantize_avx2<const BLOCK: usize>(x: &[f32], bias: u8, codes: &mut [i8], scales: &mut [BlockScale]) {
    #[target_feature(enable = "avx2")]
    fn quantize<const BLOCK: usize>(x: &[f32], bias: u8, codes: &mut [i8], scales: &mut [BlockScale]) {
        quantize_blocks::<BLOCK>(x, bias, codes, scales);
    }
    // SAFETY: `Isa::Avx2` and better ones exist only where AVX2 was detected.
    unsafe { quantize::<BLOCK>(x, bias, codes, scales) }
}

/// As `quantized::quantize_blocks`. The machine must have AVX-512 BW and VL.
pub fn quantize_avx512<const BLOCK: usize>(x: &[f32], bias: u8, codes: &mut [i8], scales: &mut [BlockScale]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn quantize<const BLOCK: usize>(x: &[f32], bias: u8, codes: &mut [i8], scales: &mut [BlockScale]) {
        quantize_blocks::<BLOCK>(x, bias, codes, scales);
    }
    // SAFETY: `Isa::Avx512Vnni` exists only where these were detected.
    unsafe { quantize::<BLOCK>(x, bias, codes, scales) }
}

/// Makes f32 of f16. The machine must have F16C.
pub fn widen(halves: &[[f16; ROWS]], out: &mut [Lanes]) {
    #[target_feature(enable = "avx,f16c")]
    fn widen(halves: &[[f16; ROWS]], out: &mut [Lanes]) {
        for (halves, out) in halves.iter().zip(out) {
            for (halves, out) in halves.as_chunks::<8>().0.iter().zip(out.0.as_chunks_mut::<8>().0) {
                // SAFETY: both are eight values, and neither access needs alignment.
                unsafe {
                    let wide = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
                    _mm256_storeu_ps(out.as_mut_ptr(), wide);
                }
            }
        }
    }
    // SAFETY: `Isa::Avx2` and better ones exist only where F16C was detected.
    unsafe { widen(halves, out) }
}
