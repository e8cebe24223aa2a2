//! Queries and attention weights rounded to 16 bits, for integer products with 8-bit keys and values.

use crate::kernels::{
    elementwise::math::{max_abs, round_to_int},
    multiversion::multiversion,
};

/// The greatest factor with which the sum of so many products with 8-bit codes fits into 32 bits.
pub fn greatest_factor(products: usize) -> i16 {
    (i32::MAX as usize / 128 / products).min(i16::MAX as usize) as i16
}

multiversion! {
    /// Rounds to the nearest of the steps between ± the greatest magnitude, which becomes `greatest_factor`. Returns
    /// the step.
    pub fn round_to_factors(x: &[f32], greatest_factor: i16, factors: &mut [i16]) -> f32 {
        let (greatest, greatest_factor) = (max_abs(x), f32::from(greatest_factor));
        let inverse = if greatest == 0.0 { 0.0 } else { greatest_factor / greatest };
        for (factor, value) in factors.iter_mut().zip(x) {
            *factor = round_to_int(value * inverse) as i16;
        }
        greatest / greatest_factor
    }
}

multiversion! {
    /// Writes the sums times `step`.
    pub fn scale_sums(sums: &[i32], step: f32, out: &mut [f32]) {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum as f32 * step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    #[test]
    fn the_greatest_sums_fit_into_32_bits() {
        for products in [2, 64, 256, 512, 514, 4096] {
            let factor = i64::from(greatest_factor(products));
            assert!(factor * 128 * products as i64 <= i64::from(i32::MAX));
            assert!(factor == 32_767 || (factor + 1) * 128 * products as i64 > i64::from(i32::MAX));
        }
    }

    #[test]
    fn factors_are_within_half_a_step() {
        let x: Vec<f32> = (0..99).map(|i| (i as f32 - 60.0) * 0.37).collect();
        for isa in Isa::available() {
            let mut factors = vec![0; x.len()];
            let step = round_to_factors(&x, 32_767, &mut factors, isa);
            let near = |(x, factor): (&f32, &i16)| (f32::from(*factor) * step - x).abs() < step * 0.502;
            assert!(x.iter().zip(&factors).all(near), "{isa:?}");
            assert_eq!(factors[0], -32_767);
            assert_eq!(round_to_factors(&[0.0], 9, &mut factors[..1], isa), 0.0);
            assert_eq!(factors[0], 0);
        }
    }
}
