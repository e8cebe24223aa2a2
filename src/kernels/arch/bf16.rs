//! Products with matrices of bfloat16, two columns at a time: the pairs that instructions for bfloat16 multiply and add.

use bytemuck::Zeroable;

use super::panels::LANES;
use crate::kernels::{Isa, threads::parallel::filled};

/// Two columns of a panel: for each row its pair, the first column in the low half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct PairLine(pub [u32; LANES]);

impl PairLine {
    pub const ZERO: Self = Self([0; LANES]);
}

/// The numbers of a pair.
#[inline(always)]
pub fn widened_pair(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// What activations are multiplied with pairs of weights as.
pub trait Bf16Factor: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Factors for a pair.
    const PER_PAIR: usize;
    /// As [`Bf16Product::add_to`].
    fn add_product(product: &Bf16Product<'_, Self>, sums: &mut [f32], sum_stride: usize, isa: Isa);
}

/// Factors that are numbers of 32 bits.
pub trait WidenedFactor: Bf16Factor {
    /// The halves of pairs in the order in which their products are added.
    const ORDER: [usize; 2];
    /// What a half of a pair is multiplied with, of the pair's factors.
    fn half(factors: &[Self], half: usize) -> f32;
}

/// As they are: sums in the order of the columns.
impl Bf16Factor for f32 {
    const PER_PAIR: usize = 2;

    fn add_product(product: &Bf16Product<'_, f32>, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        product.add_widened(sums, sum_stride, isa);
    }
}

impl WidenedFactor for f32 {
    const ORDER: [usize; 2] = [0, 1];

    #[inline(always)]
    fn half(factors: &[Self], half: usize) -> f32 {
        factors[half]
    }
}

/// The numbers of pairs that were rounded to bfloat16: of each the second column first, as the instruction has it.
impl Bf16Factor for [f32; 2] {
    const PER_PAIR: usize = 1;

    fn add_product(product: &Bf16Product<'_, [f32; 2]>, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        product.add_widened(sums, sum_stride, isa);
    }
}

impl WidenedFactor for [f32; 2] {
    const ORDER: [usize; 2] = [1, 0];

    #[inline(always)]
    fn half(factors: &[Self], half: usize) -> f32 {
        factors[0][half]
    }
}

/// Such pairs themselves, for the instruction.
#[cfg(target_arch = "x86_64")]
impl Bf16Factor for u32 {
    const PER_PAIR: usize = 1;

    fn add_product(product: &Bf16Product<'_, u32>, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        assert_eq!(isa, Isa::Avx512Bf16);
        super::x86_64::bf16::add_bf16(product, sums, sum_stride);
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for [f32; 2] {}
    impl Sealed for u32 {}
}

/// Rows of factors, each with all panels: `sums[row][panel][lane] += Σ factors[row][column] * panels[panel][column][lane]`.
pub struct Bf16Product<'a, F> {
    /// Row `r` is `factors[r * factor_stride..]`, for as many pairs as there are.
    pub factors: &'a [F],
    pub factor_stride: usize,
    pub rows: usize,
    pub pairs: usize,
    /// Each of at least as many lines as there are pairs.
    pub panels: &'a [&'a [PairLine]],
}

impl<F: Bf16Factor> Bf16Product<'_, F> {
    /// Adds to `sums`, where those of row `r` and panel `p` are at `r * sum_stride + p * LANES`.
    pub fn add_to(&self, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        F::add_product(self, sums, sum_stride, isa);
    }
}

impl<F: WidenedFactor> Bf16Product<'_, F> {
    /// By instructions for numbers of 32 bits.
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

/// Whether some rows go through a panel faster all together than with some other panels.
pub fn is_tall(rows: usize, isa: Isa) -> bool {
    match (isa, rows) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, 5..32) => true,
        _ => false,
    }
}

/// As [`rounded`], but in tiles of `T` rows, `[tiles, pairs, rows]`; zeros fill up the last one.
pub fn rounded_tall<const T: usize>(x: &[f32], columns: usize, isa: Isa) -> Vec<[u32; T]> {
    let pairs = columns.div_ceil(2);
    filled((x.len() / columns).div_ceil(T) * pairs, pairs, |tile, tall: &mut [[u32; T]]| {
        let mut some = [0; 64];
        for (row, x) in x[tile * T * columns..].chunks(columns).take(T).enumerate() {
            for (x, tall) in x.chunks(2 * some.len()).zip(tall.chunks_mut(some.len())) {
                let some = &mut some[..tall.len()];
                compiled_for!(isa, round_row(x, some));
                tall.iter_mut().zip(some).for_each(|(tall, pair)| tall[row] = *pair);
            }
        }
    })
}

/// The products of `T` rows, `[pairs, rows]`, with a panel.
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

/// Of as many rows of a panel as there is space for the numbers of some columns, at most a panel's.
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

/// As `widen`, but pairs of rows.
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

/// Rows rounded to bfloat16, two columns at a time, as the machine's instructions take them.
pub enum RoundedRows {
    #[cfg(target_arch = "x86_64")]
    RopeStyle(Vec<u32>),
    /// Widened once, not for each panel.
    Widened(Vec<[f32; 2]>),
}

/// Rounds rows of `columns` numbers; an odd last one gets a zero beside it.
pub fn rounded(x: &[f32], columns: usize, isa: Isa) -> RoundedRows {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => {
            RoundedRows::RopeStyle(by_rows(x, columns, |x, pairs| compiled_for!(isa, round_row(x, pairs))))
        }
        _ => RoundedRows::Widened(by_rows(x, columns, |x, pairs| compiled_for!(isa, round_widened(x, pairs)))),
    }
}

/// What `round` makes of each row of `columns` numbers.
fn by_rows<T: Zeroable + Send>(x: &[f32], columns: usize, round: impl Fn(&[f32], &mut [T]) + Sync) -> Vec<T> {
    const ROWS: usize = 16;
    let width = columns.div_ceil(2);
    filled(x.len() / columns * width, ROWS * width, |part, pairs| {
        let rows = x[part * ROWS * columns..].chunks(columns);
        pairs.chunks_mut(width).zip(rows).for_each(|(pairs, x)| round(x, pairs));
    })
}

#[inline(always)]
pub fn round_widened(x: &[f32], pairs: &mut [[f32; 2]]) {
    for (number, x) in pairs.as_flattened_mut().iter_mut().zip(x) {
        *number = f32::from_bits(u32::from(round(*x)) << 16);
    }
}

#[inline(always)]
pub fn round_row(x: &[f32], pairs: &mut [u32]) {
    let (whole, rest) = x.as_chunks::<2>();
    for (pair, [low, high]) in pairs.iter_mut().zip(whole) {
        *pair = u32::from(round(*low)) | u32::from(round(*high)) << 16;
    }
    if let ([last], Some(pair)) = (rest, pairs.last_mut()) {
        *pair = u32::from(round(*last));
    }
}

/// To the nearest bfloat16, of two as near to the even one.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    // What is no number stays none.
    (if x.is_nan() { bits >> 16 | 0x40 } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::noise;

    #[test]
    fn every_path_gives_the_same_bits() {
        for (rows, pairs, panels) in [(1, 1, 1), (2, 5, 4), (7, 33, 5), (16, 40, 9)] {
            let lines: Vec<PairLine> = noise(pairs * panels * LANES * 2, 1, 1.0)
                .as_chunks::<{ 2 * LANES }>()
                .0
                .iter()
                .map(|numbers| {
                    let mut line = PairLine::ZERO;
                    round_row(numbers, &mut line.0);
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
                    RoundedRows::RopeStyle(x) => add(&x, pairs, &panels, &mut sums[1], isa),
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

    #[test]
    fn numbers_are_rounded_as_usual() {
        for x in noise(1000, 4, 1.0).into_iter().chain([0.0, -0.0, f32::MAX, f32::INFINITY, f32::MIN_POSITIVE, 1e-40]) {
            assert_eq!(round(x), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(bf16::from_bits(round(f32::NAN)).is_nan());
        let x = [1.0, -2.0, 3.0000001];
        assert_eq!(by_rows(&x, 3, round_row), [0xc000_3f80, 0x0000_4040]);
        assert_eq!(by_rows(&x, 3, round_widened), [[1.0, -2.0], [3.0, 0.0]]);
    }
}
