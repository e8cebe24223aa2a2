//! Products of quantized panels with tiles of tokens.

use std::{arch::x86_64::*, ops::Range};

use super::{
    block::{BlockScratch, FEW, Halves, UnpackedBlock, lanes},
    dots, vnni,
};
use crate::kernels::{
    arch::{
        tiles::quantized::{check, for_tiles},
        x86_64::quantized::prefetch::{PanelPrefetcher, waits_for_memory},
    },
    layout::{
        activations::{ActivationTile, BlockScale, QuantRows, TILE},
        codes::{CodeFormat, QuantPanel, ROWS},
    },
};

/// Number of tokens up to which unpacked weights are not worth storing.
const DIRECT: usize = 2;
/// Does as `quantized::multiply_panels`. Needs AVX2, FMA and F16C, and AVX-VNNI if `VNNI`.
pub fn panels_avx2<'a, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
    panels: Range<usize>,
    panel: impl Fn(usize) -> QuantPanel<'a>,
    x: &QuantRows,
    write: impl FnMut(&[[f32; ROWS]]),
) {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn all<'a, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
        panels: Range<usize>,
        panel: impl Fn(usize) -> QuantPanel<'a>,
        x: &QuantRows,
        mut write: impl FnMut(&[[f32; ROWS]]),
    ) {
        let mut room = BlockScratch::take();
        // A single tile uses each block once.
        let blocks = room.blocks::<GROUPS>(if x.tokens() <= TILE { 1 } else { x.blocks() });
        for i in panels {
            let panel = panel(i);
            check::<C, GROUPS>(&panel, x.blocks());
            let mut unpacked = (&panel, &mut *blocks);
            // SAFETY: the features are passed on, and `check` found all blocks in every slice.
            unsafe { for_tiles!(&mut unpacked, x, write, multiply::<C, GROUPS, VNNI>) }
        }
        room.keep();
    }
    // SAFETY: `Isa::Avx2` and `Isa::AvxVnni` exist only where their features were detected.
    unsafe { all::<C, GROUPS, VNNI>(panels, panel, x, write) }
}

/// Computes the products of a panel with a tile.
///
/// # Safety
/// The machine has AVX2, FMA and F16C, with AVX-VNNI if `VNNI`, `check` passed, and `blocks` has room for all
/// blocks, or for one if the tile is the only one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<const T: usize, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
    (panel, blocks): &mut (&QuantPanel<'_>, &mut [UnpackedBlock<GROUPS>]),
    x: &ActivationTile<'_, T>,
    products: &mut [[f32; ROWS]; T],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    // SAFETY: passed on; a register holds half of the rows.
    unsafe {
        if T <= DIRECT && x.count == 1 {
            add_direct::<T, C, GROUPS, VNNI>(panel, x, &mut sums);
        } else {
            add_unpacked::<T, C, GROUPS, VNNI>(panel, blocks, x, &mut sums);
        }
        for (products, sums) in products.iter_mut().zip(sums) {
            _mm256_storeu_ps(products.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(products.as_mut_ptr().add(ROWS / 2), sums[1]);
        }
    }
}

/// Adds the products with the only tile, if it has few tokens.
///
/// # Safety
/// As for `multiply`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_direct<const T: usize, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
    panel: &QuantPanel<'_>,
    x: &ActivationTile<'_, T>,
    sums: &mut [Halves<__m256>; T],
) {
    let mut ahead = PanelPrefetcher::new(panel, (0, 1), lines::<C, GROUPS>(), waits_for_memory::<C>(T));
    for (b, x_scales) in x.scales.iter().enumerate() {
        ahead.ask_all();
        ahead.ask_for_higher::<C>(panel, b * GROUPS..(b + 1) * GROUPS);
        // SAFETY: the panel and the tile have all blocks.
        unsafe {
            let codes = x.codes.as_ptr().add(b * GROUPS).cast();
            let offsets = panel.offsets.as_ref().map(|offsets| lanes(offsets, b));
            let dots = match VNNI {
                true => vnni::direct::<T, C, GROUPS>(panel, b, codes, x_scales),
                false => dots::direct::<T, C, GROUPS>(panel, b, codes, x_scales),
            };
            add(dots, lanes(&panel.scales, b), offsets, x_scales, sums);
        }
    }
}

/// Adds the products with a tile. The first tile unpacks the blocks for all tiles.
///
/// # Safety
/// As for `multiply`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_unpacked<const T: usize, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
    panel: &QuantPanel<'_>,
    blocks: &mut [UnpackedBlock<GROUPS>],
    x: &ActivationTile<'_, T>,
    sums: &mut [Halves<__m256>; T],
) {
    let (alone, unpacks) = (x.count == 1, x.index == 0);
    let far = waits_for_memory::<C>(T) && alone;
    let mut ahead = PanelPrefetcher::new(panel, (x.index, x.count), lines::<C, GROUPS>(), far);
    let mut block = blocks.as_mut_ptr();
    for (b, x_scales) in x.scales.iter().enumerate() {
        ahead.ask_all();
        // SAFETY: the panel and the tile have all blocks, and `blocks` has room for them.
        unsafe {
            if unpacks {
                ahead.ask_for_higher::<C>(panel, b * GROUPS..(b + 1) * GROUPS);
                (*block).unpack::<C, VNNI>(panel, b);
            }
            let codes = x.codes.as_ptr().add(b * GROUPS).cast::<i32>();
            let offsets = panel.offsets.is_some().then_some((*block).offsets);
            for first in (0..T).step_by(FEW) {
                let (codes, x_scales, sums) = (codes.add(first), &x_scales[first..], &mut sums[first..]);
                match T - first {
                    1 => add_block::<1, T, C, GROUPS, VNNI>(&*block, offsets, codes, x_scales, sums),
                    2 => add_block::<2, T, C, GROUPS, VNNI>(&*block, offsets, codes, x_scales, sums),
                    3 => add_block::<3, T, C, GROUPS, VNNI>(&*block, offsets, codes, x_scales, sums),
                    _ => add_block::<4, T, C, GROUPS, VNNI>(&*block, offsets, codes, x_scales, sums),
                }
            }
        }
        block = block.wrapping_add(usize::from(!alone));
    }
}

/// Lines of codes of a block.
const fn lines<C: CodeFormat, const GROUPS: usize>() -> usize {
    if C::NIBBLES { GROUPS / 2 } else { GROUPS }
}

/// Adds the products of a block with the first `N` tokens of `codes`, out of a tile of `T`.
///
/// # Safety
/// The machine has AVX2 and FMA, with AVX-VNNI if `VNNI`, and the codes exist.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_block<const N: usize, const T: usize, C: CodeFormat, const GROUPS: usize, const VNNI: bool>(
    block: &UnpackedBlock<GROUPS>,
    offsets: Option<Halves<__m256>>,
    codes: *const i32,
    x: &[BlockScale],
    sums: &mut [Halves<__m256>],
) {
    // SAFETY: passed on.
    let dots = unsafe {
        match VNNI {
            true => vnni::dots::<N, T, GROUPS>(block, codes, x),
            false => dots::dots::<N, T, C, GROUPS>(block, codes, x),
        }
    };
    add(dots, block.scales, offsets, x, sums);
}

/// Adds integer products of a block, scaled, to the sums of `N` tokens.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add<const N: usize>(
    dots: [Halves<__m256i>; N],
    scales: Halves<__m256>,
    offsets: Option<Halves<__m256>>,
    x: &[BlockScale],
    sums: &mut [Halves<__m256>],
) {
    for t in 0..N {
        for half in 0..2 {
            let scale = _mm256_mul_ps(scales[half], _mm256_set1_ps(x[t].scale));
            let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t][half]), scale, sums[t][half]);
            sums[t][half] = match offsets {
                Some(offsets) => _mm256_fmadd_ps(offsets[half], _mm256_set1_ps(x[t].sum), sum),
                None => sum,
            };
        }
    }
}
