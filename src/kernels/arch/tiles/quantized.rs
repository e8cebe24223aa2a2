//! Tiles of products with quantized panels.

use crate::kernels::layout::codes::{CodeFormat, QuantPanel};

/// Calls `$write` with the products of a panel and each tile of tokens, which `$multiply` computes.
macro_rules! for_tiles {
    ($panel:expr, $x:expr, $write:expr, $multiply:ident::<$($generic:ident),*>) => {
        for tile in 0..$x.tokens().div_ceil($crate::kernels::layout::activations::TILE) {
            let first = tile * $crate::kernels::layout::activations::TILE;
            macro_rules! tile_of {
                ($tokens:expr) => {{
                    let mut products = [[0f32; ROWS]; $tokens];
                    $multiply::<{ $tokens }, $($generic),*>($panel, &$x.tile::<{ $tokens }>(tile), &mut products);
                    $write(&products);
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
                _ => tile_of!($crate::kernels::layout::activations::TILE),
            }
        }
    };
}
pub(in crate::kernels::arch) use for_tiles;

/// Checks that the slices of a panel hold so many blocks.
#[inline]
pub fn check<C: CodeFormat, const GROUPS: usize>(panel: &QuantPanel<'_>, blocks: usize) {
    let groups = blocks * GROUPS;
    assert!(!C::TABLE || (C::NIBBLES && panel.table.is_some()));
    assert!(panel.codes.len() >= if C::NIBBLES { groups / 2 } else { groups });
    assert!(panel.higher.len() >= (groups * C::HIGHER).div_ceil(8));
    for factors in [Some(panel.scales), panel.offsets].into_iter().flatten() {
        assert!(factors.halves.len() << factors.shared >= blocks);
        assert!(factors.multiples.is_none_or(|multiples| multiples.len() >= blocks));
    }
}
