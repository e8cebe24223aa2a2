//! Panels of bfloat16 in pairs of columns, as instructions for bfloat16 multiply and add them.

use super::panels::LANES;
use crate::kernels::Isa;

/// Two columns of a panel: a pair for each of its rows, the first column in the low half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct PairLine(pub [u32; LANES]);

impl PairLine {
    pub const ZERO: Self = Self([0; LANES]);
}

/// The two values of a pair.
#[inline(always)]
pub fn widened_pair(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// A form of activations that pairs of weights are multiplied with.
pub trait Bf16Factor: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Factors for each pair of weights.
    const PER_PAIR: usize;
    /// As [`Bf16Product::add_to`].
    fn add_product(product: &Bf16Product<'_, Self>, sums: &mut [f32], sum_stride: usize, isa: Isa);
}

/// Factors of 32 bits: products of weights that are widened.
pub trait WidenedFactor: Bf16Factor {
    /// The order in which the products of a pair's halves are added.
    const ORDER: [usize; 2];
    /// The factor of a half, given the factors of its pair.
    fn half(factors: &[Self], half: usize) -> f32;
}

/// Activations of full precision: sums in the order of the columns.
impl WidenedFactor for f32 {
    const ORDER: [usize; 2] = [0, 1];

    #[inline(always)]
    fn half(factors: &[Self], half: usize) -> f32 {
        factors[half]
    }
}

/// A pair of activations rounded to bfloat16: the second column first, as `vdpbf16ps` adds them.
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

/// A product: `sums[row][panel][lane] += Σ factors[row][column] * panels[panel][column][lane]`.
pub struct Bf16Product<'a, F> {
    /// Factors for `pairs` pairs. Row `r` begins at `r * factor_stride`.
    pub factors: &'a [F],
    pub factor_stride: usize,
    pub rows: usize,
    pub pairs: usize,
    /// At least `pairs` lines each.
    pub panels: &'a [&'a [PairLine]],
}

impl<F: Bf16Factor> Bf16Product<'_, F> {
    /// Adds the product to `sums`. Row `r` and panel `p` have theirs at `r * sum_stride + p * LANES`.
    pub fn add_to(&self, sums: &mut [f32], sum_stride: usize, isa: Isa) {
        F::add_product(self, sums, sum_stride, isa);
    }
}
