//! Products of quantized weights and activations: integer dot products in each block, which scales turn into f32.

use std::ops::Range;

use super::tiles::quantized::for_tiles;
use crate::kernels::{
    Isa,
    layout::{
        activations::{ActivationTile, GROUP, QuantRows},
        codes::{CodeFormat, QuantPanel, ROWS, place_of_higher},
    },
};

/// Calls `write` with the products of each panel and all tokens: a tile of tokens at a time, panel after panel.
pub fn multiply_panels<'a, C: CodeFormat, const GROUPS: usize>(
    isa: Isa,
    panels: Range<usize>,
    panel: impl Fn(usize) -> QuantPanel<'a>,
    x: &QuantRows,
    mut write: impl FnMut(&[[f32; ROWS]]),
) {
    match isa {
        Isa::Scalar => panels.for_each(|i| for_tiles!(&panel(i), x, write, scalar::<C, GROUPS>)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::x86_64::quantized::panels_avx2::<C, GROUPS, false>(panels, panel, x, write),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => super::x86_64::quantized::panels_avx2::<C, GROUPS, true>(panels, panel, x, write),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => super::x86_64::quantized::panels_avx512::<C, GROUPS>(panels, panel, x, write),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => {
            super::x86_64::quantized::panels_vnni::<C, GROUPS>(panels, panel, x, write)
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => super::aarch64::quantized::panels_neon::<C, GROUPS>(panels, panel, x, write),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod => super::aarch64::quantized::panels_dotprod::<C, GROUPS>(panels, panel, x, write),
    }
}

/// The scalar version, which tests compare the others with.
fn scalar<const T: usize, C: CodeFormat, const GROUPS: usize>(
    panel: &QuantPanel<'_>,
    x: &ActivationTile<'_, T>,
    sums: &mut [[f32; ROWS]; T],
) {
    let table = panel.table.unwrap_or(&[0; 16]);
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
}

/// The unpacked codes of a group of columns, `[rows, columns]`.
fn weights<C: CodeFormat>(panel: &QuantPanel<'_>, table: &[u8; 16], group: usize) -> [u8; ROWS * GROUP] {
    let (line, shift, mask) = if C::NIBBLES { (group / 2, group % 2 * 4, 15) } else { (group, 0, 255) };
    let line = &panel.codes[line].0;
    std::array::from_fn(|i| {
        let mut weight = line[i] >> shift & mask;
        if C::HIGHER > 0 {
            let (line, byte, shift) = place_of_higher(C::HIGHER, group, i);
            weight |= (panel.higher[line].0[byte] >> shift & ((1 << C::HIGHER) - 1)) << 4;
        }
        if C::TABLE { table[usize::from(weight)] } else { weight }
    })
}
