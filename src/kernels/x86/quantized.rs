use std::arch::x86_64::*;

use crate::kernels::{
    ggml::BLOCK,
    quantized::{FloatsRef, GROUP, GROUPS, LANES, QuantRow, TILE_BLOCK, Tile},
};

/// Bytes of a group's codes.
const GROUP_BYTES: usize = LANES * GROUP;

/// 16 rows of weights with `T` tokens, as `quantized::scalar` has them. The machine must have AVX2, FMA
/// and F16C, which `Isa::detect` made sure of.
pub fn avx2<const T: usize>(tile: &Tile<'_>, x: &[QuantRow<'_>; T]) -> [[f32; LANES]; T] {
    check(tile, x);
    let mut sums = [[0f32; LANES]; T];
    // SAFETY: `Isa::Avx2` exists only where its parts were detected, and `check` made sure that every
    // slice holds all blocks.
    unsafe { avx2_checked(tile, x, &mut sums) }
    sums
}

/// As [`avx2`]. The machine must have AVX-512 F, BW and VNNI besides.
pub fn avx512_vnni<const T: usize>(tile: &Tile<'_>, x: &[QuantRow<'_>; T]) -> [[f32; LANES]; T] {
    check(tile, x);
    let mut sums = [[0f32; LANES]; T];
    // SAFETY: as above, with `Isa::Avx512Vnni`.
    unsafe { avx512_vnni_checked(tile, x, &mut sums) }
    sums
}

/// Every slice holds all blocks.
fn check<const T: usize>(tile: &Tile<'_>, x: &[QuantRow<'_>; T]) {
    let block_bytes = if tile.format.nibbles { TILE_BLOCK / 2 } else { TILE_BLOCK };
    let floats = tile.blocks * tile.parts() * LANES;
    assert!(tile.codes.len() >= tile.blocks * block_bytes && tile.scales.len() >= floats);
    assert!(tile.offsets.is_none_or(|offsets| offsets.len() >= floats));
    for x in x {
        assert!(x.codes.len() >= tile.blocks * BLOCK && x.scales.len().min(x.sums.len()) >= tile.blocks);
    }
}

/// The sum of a token's codes in a block or in a part of it.
#[inline(always)]
fn x_sum(x: &QuantRow<'_>, block: usize, part: usize, parts: usize) -> i32 {
    // SAFETY: `check` made sure of all blocks, and a part is 0 or 1.
    unsafe {
        let sums = x.sums.get_unchecked(block);
        if parts == 1 { sums[0] + sums[1] } else { *sums.get_unchecked(part) }
    }
}

/// # Safety
/// AVX2, FMA and F16C are there, and `check` passed.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_checked<const T: usize>(tile: &Tile<'_>, x: &[QuantRow<'_>; T], out: &mut [[f32; LANES]; T]) {
    let (parts, zero) = (tile.parts(), i32::from(tile.format.zero));
    let signed = zero == 128;
    // SAFETY: block `b` of every slice is inside it, as is each group, and loads need no alignment.
    unsafe {
        for half in 0..2 {
            let mut sums = [_mm256_setzero_ps(); T];
            for b in 0..tile.blocks {
                for part in 0..parts {
                    let mut products = [_mm256_setzero_si256(); T];
                    for group in part * GROUPS / parts..(part + 1) * GROUPS / parts {
                        let weights = avx2_codes(tile, b, group, half);
                        let magnitudes = if signed { _mm256_abs_epi8(weights) } else { weights };
                        for t in 0..T {
                            let x = x[t].codes.as_ptr().add(b * BLOCK + group * GROUP).cast::<i32>();
                            let x = _mm256_set1_epi32(x.read_unaligned());
                            // Pairs fit into 16 bits: codes are below 64, or magnitudes up to 128.
                            let x = if signed { _mm256_sign_epi8(x, weights) } else { x };
                            let pairs = _mm256_maddubs_epi16(magnitudes, x);
                            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                            products[t] = _mm256_add_epi32(products[t], fours);
                        }
                    }
                    let scales = avx2_floats(tile.scales, (b * parts + part) * LANES + half * LANES / 2);
                    for t in 0..T {
                        let correction = if signed { 0 } else { zero * x_sum(&x[t], b, part, parts) };
                        let product = _mm256_sub_epi32(products[t], _mm256_set1_epi32(correction));
                        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*x[t].scales.get_unchecked(b)));
                        sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, sums[t]);
                    }
                }
                if let Some(offsets) = tile.offsets {
                    for part in 0..parts {
                        let offsets = avx2_floats(offsets, (b * parts + part) * LANES + half * LANES / 2);
                        for t in 0..T {
                            let x_sum = x_sum(&x[t], b, part, parts) as f32 * x[t].scales.get_unchecked(b);
                            sums[t] = _mm256_fmadd_ps(offsets, _mm256_set1_ps(x_sum), sums[t]);
                        }
                    }
                }
            }
            for t in 0..T {
                _mm256_storeu_ps(out[t].as_mut_ptr().add(half * LANES / 2), sums[t]);
            }
        }
    }
}

/// The codes of 8 rows in a group; those with a zero of 128 without it.
///
/// # Safety
/// AVX2 is there, `check` passed, and block and group are inside the tile.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn avx2_codes(tile: &Tile<'_>, block: usize, group: usize, half: usize) -> __m256i {
    let within = half * GROUP_BYTES / 2;
    // SAFETY: passed on.
    unsafe {
        if tile.format.nibbles {
            let at = block * TILE_BLOCK / 2 + group % (GROUPS / 2) * GROUP_BYTES + within;
            let bytes = _mm256_loadu_si256(tile.codes.as_ptr().add(at).cast());
            let bytes = if group < GROUPS / 2 { bytes } else { _mm256_srli_epi16(bytes, 4) };
            return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
        }
        let at = block * TILE_BLOCK + group * GROUP_BYTES + within;
        let bytes = _mm256_loadu_si256(tile.codes.as_ptr().add(at).cast());
        if tile.format.zero == 128 { _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)) } else { bytes }
    }
}

/// # Safety
/// AVX2 and F16C are there, and 8 floats from `at` on are inside.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2_floats(floats: FloatsRef<'_>, at: usize) -> __m256 {
    // SAFETY: passed on.
    unsafe {
        match floats {
            FloatsRef::F16(floats) => _mm256_cvtph_ps(_mm_loadu_si128(floats.as_ptr().add(at).cast())),
            FloatsRef::F32(floats) => _mm256_loadu_ps(floats.as_ptr().add(at)),
        }
    }
}

/// # Safety
/// AVX-512 F, BW and VNNI are there, and `check` passed.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn avx512_vnni_checked<const T: usize>(tile: &Tile<'_>, x: &[QuantRow<'_>; T], out: &mut [[f32; LANES]; T]) {
    let (parts, zero) = (tile.parts(), i32::from(tile.format.zero));
    // SAFETY: block `b` of every slice is inside it, as is each group, and loads need no alignment.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); T];
        for b in 0..tile.blocks {
            for part in 0..parts {
                let mut products = [_mm512_setzero_si512(); T];
                for t in 0..T {
                    products[t] = _mm512_set1_epi32(-zero * x_sum(&x[t], b, part, parts));
                }
                for group in part * GROUPS / parts..(part + 1) * GROUPS / parts {
                    let weights = avx512_codes(tile, b, group);
                    for t in 0..T {
                        let x = x[t].codes.as_ptr().add(b * BLOCK + group * GROUP).cast::<i32>();
                        products[t] = _mm512_dpbusd_epi32(products[t], weights, _mm512_set1_epi32(x.read_unaligned()));
                    }
                }
                let scales = avx512_floats(tile.scales, (b * parts + part) * LANES);
                for t in 0..T {
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*x[t].scales.get_unchecked(b)));
                    sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t]), scale, sums[t]);
                }
            }
            if let Some(offsets) = tile.offsets {
                for part in 0..parts {
                    let offsets = avx512_floats(offsets, (b * parts + part) * LANES);
                    for t in 0..T {
                        let x_sum = x_sum(&x[t], b, part, parts) as f32 * x[t].scales.get_unchecked(b);
                        sums[t] = _mm512_fmadd_ps(offsets, _mm512_set1_ps(x_sum), sums[t]);
                    }
                }
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(out[t].as_mut_ptr(), sums[t]);
        }
    }
}

/// The codes of 16 rows in a group.
///
/// # Safety
/// AVX-512 F is there, `check` passed, and block and group are inside the tile.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_codes(tile: &Tile<'_>, block: usize, group: usize) -> __m512i {
    // SAFETY: passed on.
    unsafe {
        if !tile.format.nibbles {
            return _mm512_loadu_si512(tile.codes.as_ptr().add(block * TILE_BLOCK + group * GROUP_BYTES).cast());
        }
        let at = block * TILE_BLOCK / 2 + group % (GROUPS / 2) * GROUP_BYTES;
        let bytes = _mm512_loadu_si512(tile.codes.as_ptr().add(at).cast());
        let bytes = if group < GROUPS / 2 { bytes } else { _mm512_srli_epi32(bytes, 4) };
        _mm512_and_si512(bytes, _mm512_set1_epi32(0x0f0f_0f0f))
    }
}

/// # Safety
/// AVX-512 F is there, and 16 floats from `at` on are inside.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_floats(floats: FloatsRef<'_>, at: usize) -> __m512 {
    // SAFETY: passed on.
    unsafe {
        match floats {
            FloatsRef::F16(floats) => _mm512_cvtph_ps(_mm256_loadu_si256(floats.as_ptr().add(at).cast())),
            FloatsRef::F32(floats) => _mm512_loadu_ps(floats.as_ptr().add(at)),
        }
    }
}
