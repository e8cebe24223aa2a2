//! Integer dot products of a panel of quantised weights with activations.

use super::{
    Isa,
    activations::{GROUP, QuantRows, Tile},
    codes::{Codes, Panel, ROWS},
};

/// Calls with `$products` of each tile of tokens, whose number is `$T`.
macro_rules! for_tiles {
    ($x:expr, $write:expr, $products:ident::<$codes:ident, $groups:ident>($panel:expr)) => {
        for tile in 0..$x.tokens().div_ceil($crate::kernels::activations::TILE) {
            let first = tile * $crate::kernels::activations::TILE;
            macro_rules! tile_of {
                ($tokens:expr) => {{
                    let products = $products::<{ $tokens }, $codes, $groups>($panel, &$x.tile::<{ $tokens }>(tile));
                    products.iter().for_each(&mut $write);
                }};
            }
            match $x.tokens() - first {
                1 => tile_of!(1),
                2 => tile_of!(2),
                3 => tile_of!(3),
                4 => tile_of!(4),
                5 => tile_of!(5),
                6 => tile_of!(6),
                7 => tile_of!(7),
                _ => tile_of!($crate::kernels::activations::TILE),
            }
        }
    };
}
pub(super) use for_tiles;

/// Gives the products of a panel with one token after another.
pub fn multiply_panel<C: Codes, const GROUPS: usize>(
    isa: Isa,
    panel: &Panel<'_>,
    x: &QuantRows,
    mut write: impl FnMut(&[f32; ROWS]),
) {
    match isa {
        Isa::Scalar => for_tiles!(x, write, scalar::<C, GROUPS>(panel)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::x86::quantized::panel_avx2::<C, GROUPS>(panel, x, write),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => super::x86::quantized::panel_avx512::<C, GROUPS>(panel, x, write),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => super::x86::quantized::panel_vnni::<C, GROUPS>(panel, x, write),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => super::arm::quantized::panel_neon::<C, GROUPS>(panel, x, write),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod => super::arm::quantized::panel_dotprod::<C, GROUPS>(panel, x, write),
    }
}

/// The oracle of the other paths, and the way of machines without them.
fn scalar<const T: usize, C: Codes, const GROUPS: usize>(panel: &Panel<'_>, x: &Tile<'_, T>) -> [[f32; ROWS]; T] {
    let table = panel.table.unwrap_or(&[0; 16]);
    let mut sums = [[0f32; ROWS]; T];
    for (block, (x_scales, x)) in x.scales.iter().zip(x.codes.as_chunks::<GROUPS>().0).enumerate() {
        let scales = panel.scales.lanes(block);
        let offsets = panel.offsets.map(|offsets| offsets.lanes(block));
        for (token, sums) in sums.iter_mut().enumerate() {
            let mut dots = [x_scales[token].start; ROWS];
            for (i, codes) in x.iter().enumerate() {
                let weights = weights::<C>(panel, table, block * GROUPS + i);
                for (dot, weights) in dots.iter_mut().zip(weights.as_chunks::<GROUP>().0) {
                    for (weight, code) in weights.iter().zip(codes[token]) {
                        *dot += i32::from(*weight) * i32::from(code);
                    }
                }
            }
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = (dots[lane] as f32).mul_add(scales[lane] * x_scales[token].scale, *sum);
                if let Some(offsets) = offsets {
                    *sum = offsets[lane].mul_add(x_scales[token].sum, *sum);
                }
            }
        }
    }
    sums
}

/// The codes of a group of columns.
fn weights<C: Codes>(panel: &Panel<'_>, table: &[u8; 16], group: usize) -> [u8; ROWS * GROUP] {
    let (line, shift, mask) = if C::NIBBLES { (group / 2, group % 2 * 4, 15) } else { (group, 0, 255) };
    let line = &panel.codes[line].0;
    std::array::from_fn(|i| {
        let mut weight = line[i] >> shift & mask;
        for plane in 0..C::PLANES {
            weight |= ((panel.planes[group * C::PLANES + plane] >> i & 1) as u8) << (4 + plane);
        }
        if C::TABLE { table[usize::from(weight)] } else { weight }
    })
}
