//! Panels of bfloat16 in pairs of columns, as instructions for bfloat16 multiply and add them.

use super::panels::LANES;
use crate::kernels::Isa;

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

impl WidenedFactor for f32 {
    const ORDER: [usize; 2] = [0, 1];

    #[inline(always)]
    fn half(factors: &[Self], half: usize) -> f32 {
        factors[half]
    }
}

impl WidenedFactor for [f32; 2] {
    const ORDER: [usize; 2] = [1, 0];

    #[inline(always)]
    fn half(factors: &[Self], half: usize) -> f32 {
        factors[0][half]
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
