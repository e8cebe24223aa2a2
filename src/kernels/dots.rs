//! Integer dot products of a panel of quantised weights with a tile of tokens.

use super::{
    Isa,
    activations::{GROUP, Tile},
    codes::{Panel, ROWS},
};

/// The products of a panel with `T` tokens; `TABLE` says whether nibbles are looked up.
pub fn products<const T: usize, const NIBBLES: bool, const TABLE: bool, const GROUPS: usize>(
    isa: Isa,
    panel: &Panel<'_>,
    x: &Tile<'_, T>,
) -> [[f32; ROWS]; T] {
    match isa {
        Isa::Scalar => scalar::<T, NIBBLES, TABLE, GROUPS>(panel, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::x86::quantized::products_avx2::<T, NIBBLES, TABLE, GROUPS>(panel, x),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => {
            super::x86::quantized::products_avx512::<T, NIBBLES, TABLE, GROUPS>(panel, x)
        }
    }
}

/// The oracle of the other paths, and the way of machines without them.
fn scalar<const T: usize, const NIBBLES: bool, const TABLE: bool, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &Tile<'_, T>,
) -> [[f32; ROWS]; T] {
    let table = panel.table.unwrap_or(&[0; 16]);
    let mut sums = [[0f32; ROWS]; T];
    for (block, (x_scales, x)) in x.scales.iter().zip(x.codes.as_chunks::<GROUPS>().0).enumerate() {
        let scales = panel.scales.lanes(block);
        let offsets = panel.offsets.map(|offsets| offsets.lanes(block));
        for (token, sums) in sums.iter_mut().enumerate() {
            let mut dots = [x_scales[token].start; ROWS];
            for (i, codes) in x.iter().enumerate() {
                let group = block * GROUPS + i;
                let (line, shift, mask) = if NIBBLES { (group / 2, group % 2 * 4, 15) } else { (group, 0, 255) };
                for (dot, weights) in dots.iter_mut().zip(panel.codes[line].0.as_chunks::<GROUP>().0) {
                    for (weight, code) in weights.iter().zip(codes[token]) {
                        let weight = weight >> shift & mask;
                        let weight = if TABLE { table[usize::from(weight)] } else { weight };
                        *dot += i32::from(weight) * i32::from(code);
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
