//! Functions that every instruction set computes alike, in plain code that compilers vectorize.

/// `eˣ` with a relative error of about 1e-7; zero below -87, and at most `e⁸⁸`. Range reduction by `ln 2`, and the
/// polynomial of Cephes' [`expf`](https://www.netlib.org/cephes/).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const GREATEST: f32 = 88.0;
    /// Adding it rounds to an integer, which is in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts. The first has few bits, so that its multiples are exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > GREATEST { GREATEST } else { clamped };
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let twos = rounded - ROUND;
    let rest = twos.mul_add(-LN_2_LOW, twos.mul_add(-LN_2_HIGH, clamped));
    let polynomial = 1.987_569_2e-4f32
        .mul_add(rest, 1.398_199_9e-3)
        .mul_add(rest, 8.333_452e-3)
        .mul_add(rest, 4.166_579_6e-2)
        .mul_add(rest, 1.666_666_5e-1)
        .mul_add(rest, 0.5);
    let mantissa = polynomial.mul_add(rest * rest, rest + 1.0);
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < LOWEST { 0.0 } else { mantissa * scale }
}

/// The hyperbolic tangent with an error of about 2e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let small = exp(-2.0 * x.abs());
    ((1.0 - small) / (1.0 + small)).copysign(x)
}

/// The error function with an error of about 3e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = 1.0 / 0.327_591_1f32.mul_add(x.abs(), 1.0);
    let polynomial =
        1.061_405_4f32.mul_add(t, -1.453_152).mul_add(t, 1.421_413_7).mul_add(t, -0.284_496_74).mul_add(t, 0.254_829_6);
    (1.0 - polynomial * t * exp(-x * x)).copysign(x)
}

/// The greatest magnitude; NaN if a value is NaN. Magnitudes are in the order of their bits, with NaN above all.
#[inline(always)]
pub fn max_abs(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |max, value| max.max(value.abs().to_bits())))
}

/// Rounds to the nearest integer, whose lower 16 bits are the lower 16 bits of the result.
#[inline(always)]
pub fn round_to_int(value: f32) -> u32 {
    // A sum of this size has no bits for fractions, and its lowest bits are an integer.
    const ROUND: f32 = (3 << 22) as f32;
    (value + ROUND).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_the_exact_one() {
        for step in -870_000..=880_000 {
            let x = step as f32 / 10_000.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 1.5e-7, "{x}: {} {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-87.1), exp(f32::NEG_INFINITY)], [0.0, 0.0]);
        assert_eq!([exp(100.0), exp(f32::INFINITY)], [exp(88.0); 2]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_are_near_the_exact_ones() {
        for step in -100_000..=100_000 {
            let x = step as f32 / 10_000.0;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "{x}");
        }
        // From tables.
        for (x, exact) in
            [(0.0, 0.0), (0.1, 0.112_462_916), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (2.0, 0.995_322_265)]
        {
            assert!((f64::from(erf(x)) - exact).abs() < 3e-7, "{x}: {} {exact}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!([tanh(f32::INFINITY), tanh(-90.0), erf(f32::INFINITY), erf(-9.0)], [1.0, -1.0, 1.0, -1.0]);
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }
}
