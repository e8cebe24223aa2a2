//! Products of bfloat16 panels, and their transposition: the scalar versions, and the choice of a machine's.

use crate::kernels::{
    Isa,
    layout::{
        bf16::{Bf16Factor, Bf16Product, PairLine, WidenedFactor, widened_pair},
        panels::LANES,
    },
};

impl Bf16Factor for f32 {
    const PER_PAIR: usize = 2;

    fn add_product(product: &Bf16Product<'_, f32>, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        product.add_widened(sums, sum_stride, isa);
    }
}

impl Bf16Factor for [f32; 2] {
    const PER_PAIR: usize = 1;

    fn add_product(product: &Bf16Product<'_, [f32; 2]>, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        product.add_widened(sums, sum_stride, isa);
    }
}

/// A pair of activations rounded to bfloat16, packed for `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
impl Bf16Factor for u32 {
    const PER_PAIR: usize = 1;

    fn add_product(product: &Bf16Product<'_, u32>, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        assert_eq!(isa, Isa::Avx512Bf16);
        super::x86_64::bf16::add_bf16(product, sums, sum_stride);
    }
}

impl<F: WidenedFactor> Bf16Product<'_, F> {
    /// Adds the product with f32 instructions.
    fn add_widened(&self, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        match isa {
            Isa::Scalar => self.add_scalar(sums, sum_stride),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => super::x86_64::bf16::add_avx2(self, sums, sum_stride),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => super::x86_64::bf16::add_avx512(self, sums, sum_stride),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod => super::aarch64::bf16::add_neon(self, sums, sum_stride),
        }
    }

    fn add_scalar(&self, sums: &mut [f32], sum_stride: usize) {
        for row in 0..self.rows {
            let factors = self.factors[row * self.factor_stride..].chunks(F::PER_PAIR).take(self.pairs);
            for (panel, sums) in self.panels.iter().zip(sums[row * sum_stride..].chunks_mut(LANES)) {
                for (factors, line) in factors.clone().zip(*panel) {
                    for (sum, pair) in sums.iter_mut().zip(line.0) {
                        for half in F::ORDER {
                            *sum = F::half(factors, half).mul_add(widened_pair(pair)[half], *sum);
                        }
                    }
                }
            }
        }
    }
}

/// The products of `T` rows of activations with a panel. `x` is `[pairs, rows]`, so that a panel is read once for many
/// rows.
pub fn multiply_tall<const T: usize>(panel: &[PairLine], x: &[[u32; T]], isa: Isa) -> [[f32; LANES]; T] {
    let mut sums = [[0f32; LANES]; T];
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => super::x86_64::bf16::multiply_tall(panel, x, &mut sums),
        _ => {
            for (line, factors) in panel.iter().zip(x) {
                for (sums, factor) in sums.iter_mut().zip(factors) {
                    for (sum, pair) in sums.iter_mut().zip(line.0) {
                        let (factors, weights) = (widened_pair(*factor), widened_pair(pair));
                        for half in <[f32; 2]>::ORDER {
                            *sum = factors[half].mul_add(weights[half], *sum);
                        }
                    }
                }
            }
        }
    }
    sums
}

/// Transposes and widens lines of a panel: `out[row][column]`, for as many rows as `out` has and at most [`LANES`]
/// columns.
pub fn widen(lines: &[PairLine], out: &mut [[f32; LANES]], isa: Isa) {
    match (isa, lines.first_chunk::<{ LANES / 2 }>()) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, Some(lines)) => super::x86_64::bf16::widen_avx512(lines, out),
        _ => {
            for (line, pair) in lines.iter().zip(0..) {
                for (out, weights) in out.iter_mut().zip(line.0) {
                    [out[2 * pair], out[2 * pair + 1]] = widened_pair(weights);
                }
            }
        }
    }
}

/// Transposes lines of a panel to pairs of rows: line `i` of `out` has rows `2 * i` and `2 * i + 1`.
pub fn pair_rows(lines: &[PairLine], out: &mut [PairLine], isa: Isa) {
    match (isa, lines.first_chunk::<{ LANES / 2 }>()) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, Some(lines)) => {
            super::x86_64::bf16::pair_rows_avx512(lines, out)
        }
        _ => {
            for (line, pair) in lines.iter().zip(0..) {
                for (out, [upper, lower]) in out.iter_mut().zip(line.0.as_chunks().0) {
                    out.0[2 * pair] = upper & 0xffff | lower << 16;
                    out.0[2 * pair + 1] = upper >> 16 | lower & 0xffff_0000;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_path_turns_whole_and_partial_lines() {
        let number = |row: usize, column: usize| bf16::from_f32((row * 100 + column) as f32 / 16.0);
        let pair = |low: bf16, high: bf16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
        let line = |at: usize| PairLine(std::array::from_fn(|row| pair(number(row, 2 * at), number(row, 2 * at + 1))));
        let lines: Vec<PairLine> = (0..LANES / 2).map(line).collect();
        for isa in Isa::available() {
            for (pairs, rows) in [(0, 16), (1, 16), (5, 6), (8, 6), (8, 16)] {
                let (mut wide, mut paired) = (vec![[0f32; LANES]; rows], vec![PairLine::ZERO; rows / 2]);
                widen(&lines[..pairs], &mut wide, isa);
                pair_rows(&lines[..pairs], &mut paired, isa);
                let of = |row, column| if column < 2 * pairs { number(row, column) } else { bf16::ZERO };
                for (row, column) in (0..rows).flat_map(|row| (0..LANES).map(move |column| (row, column))) {
                    assert_eq!(wide[row][column], of(row, column).to_f32(), "{isa:?}");
                    let both = pair(of(row & !1, column), of(row | 1, column));
                    assert_eq!(paired[row / 2].0[column], both, "{isa:?}");
                }
            }
        }
    }
}
