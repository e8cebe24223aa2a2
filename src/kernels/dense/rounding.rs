//! Activations rounded to bfloat16.

use bytemuck::Zeroable;

use crate::kernels::{Isa, multiversion::multiversion, threads::parallel::filled};

/// Whether [`multiply_tall`](crate::kernels::arch::bf16::multiply_tall) is faster for so many rows: it takes all of
/// them through one panel at a time.
pub fn is_tall(rows: usize, isa: Isa) -> bool {
    match (isa, rows) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, 5..32) => true,
        _ => false,
    }
}

/// Rows rounded to bfloat16, in pairs of columns.
pub enum RoundedRows {
    /// Packed, for instructions that multiply pairs.
    #[cfg(target_arch = "x86_64")]
    Packed(Vec<u32>),
    /// Widened to f32 again, once for all panels.
    Widened(Vec<[f32; 2]>),
}

/// Rounds rows of `columns` values. An odd last value is paired with zero.
pub fn rounded(x: &[f32], columns: usize, isa: Isa) -> RoundedRows {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => RoundedRows::Packed(by_rows(x, columns, |x, pairs| round_row(x, pairs, isa))),
        _ => RoundedRows::Widened(by_rows(x, columns, |x, pairs| round_widened(x, pairs, isa))),
    }
}

/// The results of `round` for each row of `columns` values.
fn by_rows<T: Zeroable + Send>(x: &[f32], columns: usize, round: impl Fn(&[f32], &mut [T]) + Sync) -> Vec<T> {
    const ROWS: usize = 16;
    let width = columns.div_ceil(2);
    filled(x.len() / columns * width, ROWS * width, |part, pairs| {
        let rows = x[part * ROWS * columns..].chunks(columns);
        pairs.chunks_mut(width).zip(rows).for_each(|(pairs, x)| round(x, pairs));
    })
}

multiversion! {
    /// Rounds a row to pairs of f32.
    pub fn round_widened(x: &[f32], pairs: &mut [[f32; 2]]) {
        for (value, x) in pairs.as_flattened_mut().iter_mut().zip(x) {
            *value = f32::from_bits(u32::from(round(*x)) << 16);
        }
    }
}

multiversion! {
    /// Rounds a row to packed pairs.
    pub fn round_row(x: &[f32], pairs: &mut [u32]) {
        let (whole, rest) = x.as_chunks::<2>();
        for (pair, [low, high]) in pairs.iter_mut().zip(whole) {
            *pair = u32::from(round(*low)) | u32::from(round(*high)) << 16;
        }
        if let ([last], Some(pair)) = (rest, pairs.last_mut()) {
            *pair = u32::from(round(*last));
        }
    }
}

/// Rounds to the nearest bfloat16, ties to even. NaN stays NaN.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 0x40 } else { nearest }) as u16
}

/// As [`rounded`], in tiles of `T` rows, `[tiles, pairs, rows]`. Zeros pad the last tile.
pub fn rounded_tall<const T: usize>(x: &[f32], columns: usize, isa: Isa) -> Vec<[u32; T]> {
    let pairs = columns.div_ceil(2);
    filled((x.len() / columns).div_ceil(T) * pairs, pairs, |tile, tall: &mut [[u32; T]]| {
        let mut some = [0; 64];
        for (row, x) in x[tile * T * columns..].chunks(columns).take(T).enumerate() {
            for (x, tall) in x.chunks(2 * some.len()).zip(tall.chunks_mut(some.len())) {
                let some = &mut some[..tall.len()];
                round_row(x, some, isa);
                tall.iter_mut().zip(some).for_each(|(tall, pair)| tall[row] = *pair);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::{
        arch::bf16::multiply_tall,
        layout::{
            bf16::{Bf16Factor, Bf16Product, PairLine},
            panels::LANES,
        },
        noise,
    };

    #[test]
    fn every_path_gives_the_same_bits() {
        for (rows, pairs, panels) in [(1, 1, 1), (2, 5, 4), (7, 33, 5), (16, 40, 9)] {
            let lines: Vec<PairLine> = noise(pairs * panels * LANES * 2, 1, 1.0)
                .as_chunks::<{ 2 * LANES }>()
                .0
                .iter()
                .map(|values| {
                    let mut line = PairLine::ZERO;
                    round_row(values, &mut line.0, Isa::Scalar);
                    line
                })
                .collect();
            let panels: Vec<&[PairLine]> = lines.chunks(pairs).collect();
            let x = noise(rows * pairs * 2, 2, 1.0);
            fn add<F: Bf16Factor>(x: &[F], pairs: usize, panels: &[&[PairLine]], sums: &mut [f32], isa: Isa) {
                let factor_stride = pairs * F::PER_PAIR;
                let product = Bf16Product { factors: x, factor_stride, rows: x.len() / factor_stride, pairs, panels };
                product.add_to(sums, panels.len() * LANES, isa);
            }
            let run = |isa| {
                let before = noise(rows * panels.len() * LANES, 3, 1.0);
                let mut sums = [before.clone(), before];
                add(&x, pairs, &panels, &mut sums[0], isa);
                match rounded(&x, pairs * 2, isa) {
                    #[cfg(target_arch = "x86_64")]
                    RoundedRows::Packed(x) => add(&x, pairs, &panels, &mut sums[1], isa),
                    RoundedRows::Widened(x) => add(&x, pairs, &panels, &mut sums[1], isa),
                }
                let tall = rounded_tall::<3>(&x, pairs * 2, isa);
                let tall = tall.chunks(pairs).map(|x| multiply_tall(panels[0], x, isa)).collect::<Vec<_>>();
                (sums, tall)
            };
            let scalar = run(Isa::Scalar);
            Isa::available().into_iter().for_each(|isa| assert_eq!(run(isa), scalar, "{isa:?}"));
        }
    }

    #[test]
    fn values_are_rounded_to_nearest_even() {
        for x in noise(1000, 4, 1.0).into_iter().chain([0.0, -0.0, f32::MAX, f32::INFINITY, f32::MIN_POSITIVE, 1e-40]) {
            assert_eq!(round(x), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(bf16::from_bits(round(f32::NAN)).is_nan());
        let x = [1.0, -2.0, 3.0000001];
        for isa in Isa::available() {
            assert_eq!(by_rows(&x, 3, |x, pairs| round_row(x, pairs, isa)), [0xc000_3f80, 0x0000_4040]);
            assert_eq!(by_rows(&x, 3, |x, pairs| round_widened(x, pairs, isa)), [[1.0, -2.0], [3.0, 0.0]]);
        }
    }
}
