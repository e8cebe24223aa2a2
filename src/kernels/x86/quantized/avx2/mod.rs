//! Weights of a block are unpacked once for all tokens of a tile, as magnitudes and signs, since what is multiplied first has
//! none. Registers hold the sums of their 16 rows and of four tokens.

mod block;
mod dots;

use std::arch::x86_64::*;

use super::{Ahead, is_signed, waits_for_memory};
use crate::kernels::{
    activations::{BlockScale, Tile},
    codes::{Codes, Panel, ROWS},
};
use block::Block;
use dots::dots;

/// Tokens whose sums are in registers together.
const FEW: usize = 4;

/// A number of each row, or four codes.
type Rows<T> = [T; 2];

/// # Safety
/// AVX2, FMA and F16C are there, and `check` passed.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn multiply<const T: usize, C: Codes, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &Tile<'_, T>,
    products: &mut [[f32; ROWS]; T],
) {
    let mut ahead = Ahead::of(panel, (x.index, x.count), 1, waits_for_memory::<C>(T) && x.count == 1);
    let mut block = Block::<GROUPS>::zero();
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    // SAFETY: the panel and the tile have all blocks.
    unsafe {
        for (b, scales) in x.scales.iter().enumerate() {
            block.unpack::<C>(panel, b, x.index == 0, &mut ahead);
            let codes = x.codes.as_ptr().add(b * GROUPS).cast::<i32>();
            for first in (0..T).step_by(FEW) {
                let (codes, scales, sums) = (codes.add(first), &scales[first..], &mut sums[first..]);
                match T - first {
                    1 => add::<1, T, C, GROUPS>(&block, codes, scales, sums),
                    2 => add::<2, T, C, GROUPS>(&block, codes, scales, sums),
                    3 => add::<3, T, C, GROUPS>(&block, codes, scales, sums),
                    _ => add::<4, T, C, GROUPS>(&block, codes, scales, sums),
                }
            }
        }
        for (products, sums) in products.iter_mut().zip(sums) {
            _mm256_storeu_ps(products.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(products.as_mut_ptr().add(ROWS / 2), sums[1]);
        }
    }
}

/// Adds the products of a block with the first `N` of some tokens out of a tile of `T`.
///
/// # Safety
/// AVX2, FMA and F16C are there, and the codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add<const N: usize, const T: usize, C: Codes, const GROUPS: usize>(
    block: &Block<GROUPS>,
    codes: *const i32,
    x: &[BlockScale],
    sums: &mut [Rows<__m256>],
) {
    let mut dots_of = [block.lacking; N];
    for t in 0..N {
        if !is_signed::<C, false>() {
            dots_of[t] = [_mm256_set1_epi32(x[t].start); 2];
        }
    }
    // SAFETY: passed on.
    let dots = unsafe { dots::<N, T, C, GROUPS>(block, codes, dots_of) };
    for t in 0..N {
        for half in 0..2 {
            let scale = _mm256_mul_ps(block.scales[half], _mm256_set1_ps(x[t].scale));
            sums[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][half]), scale, sums[t][half]);
        }
    }
    if let Some(offsets) = block.offsets {
        for t in 0..N {
            for half in 0..2 {
                sums[t][half] = _mm256_fmadd_ps(offsets[half], _mm256_set1_ps(x[t].sum), sums[t][half]);
            }
        }
    }
}
