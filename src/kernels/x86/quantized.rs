use std::arch::x86_64::*;

use crate::kernels::quantized::{BLOCK, LANES, QuantRow, RowCodes, total};

/// As `quantized::scalar`. The machine must have AVX2 and FMA, which `Isa::detect` made sure of.
pub fn dots_avx2<const T: usize>(codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) -> [f32; T] {
    check(codes, scales, tokens);
    // SAFETY: `Isa::Avx2` exists only where AVX2 and FMA were detected, and `check` made sure that
    // every slice holds all blocks.
    unsafe { avx2(codes, scales, tokens) }
}

/// As `quantized::scalar`. The machine must have AVX-512 VNNI and VL besides.
pub fn dots_avx512_vnni<const T: usize>(codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) -> [f32; T] {
    check(codes, scales, tokens);
    // SAFETY: as above, with `Isa::Avx512Vnni`.
    unsafe { avx512_vnni(codes, scales, tokens) }
}

/// Every slice holds the blocks that there are scales for.
fn check<const T: usize>(codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) {
    let columns = scales.len() * BLOCK;
    let held = match codes {
        RowCodes::Nibbles(codes) => 2 * codes.len(),
        RowCodes::Bytes(codes) => codes.len(),
    };
    assert!(held >= columns);
    assert!(tokens.iter().all(|token| token.codes.len() >= columns && token.scales.len() >= scales.len()));
}

/// # Safety
/// AVX2 and FMA are there, and `check` passed.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const T: usize>(codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) -> [f32; T] {
    // Products of magnitudes with signed activations fit: 127 * 127 * 2 < 32768.
    let products = |weights: __m256i, x: __m256i| {
        let magnitudes = _mm256_abs_epi8(weights);
        let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights));
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    };
    // SAFETY: passed on.
    unsafe { accumulate(codes, scales, tokens, products) }
}

/// # Safety
/// AVX2, FMA, AVX-512 VNNI and VL are there, and `check` passed.
#[target_feature(enable = "avx2,fma,avx512vnni,avx512vl")]
unsafe fn avx512_vnni<const T: usize>(codes: RowCodes<'_>, scales: &[f32], tokens: &[QuantRow<'_>; T]) -> [f32; T] {
    let products = |weights: __m256i, x: __m256i| {
        let magnitudes = _mm256_abs_epi8(weights);
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), magnitudes, _mm256_sign_epi8(x, weights))
    };
    // SAFETY: passed on.
    unsafe { accumulate(codes, scales, tokens, products) }
}

/// Walks the blocks; `products` gives the lanes' integer sums of one.
///
/// # Safety
/// AVX2 and FMA are there, and `check` passed.
#[inline(always)]
unsafe fn accumulate<const T: usize>(
    codes: RowCodes<'_>,
    scales: &[f32],
    tokens: &[QuantRow<'_>; T],
    products: impl Fn(__m256i, __m256i) -> __m256i,
) -> [f32; T] {
    // SAFETY: block `b` of every slice is inside it, and loads need no alignment.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); T];
        for (b, scale) in scales.iter().enumerate() {
            let weights = match codes {
                RowCodes::Nibbles(codes) => {
                    let bytes = _mm_loadu_si128(codes.as_ptr().add(b * BLOCK / 2).cast());
                    let both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
                    _mm256_and_si256(both, _mm256_set1_epi8(15))
                }
                RowCodes::Bytes(codes) => _mm256_loadu_si256(codes.as_ptr().add(b * BLOCK).cast()),
            };
            for t in 0..T {
                let x = _mm256_loadu_si256(tokens[t].codes.as_ptr().add(b * BLOCK).cast());
                let scale = _mm256_set1_ps(scale * tokens[t].scales.get_unchecked(b));
                sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products(weights, x)), scale, sums[t]);
            }
        }
        // A loop, since closures are compiled without the function's instruction set.
        let mut totals = [0f32; T];
        for t in 0..T {
            let mut lanes = [0f32; LANES];
            _mm256_storeu_ps(lanes.as_mut_ptr(), sums[t]);
            totals[t] = total(&lanes);
        }
        totals
    }
}
