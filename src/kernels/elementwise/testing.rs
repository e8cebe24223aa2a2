//! Comparisons that the tests of row-wise kernels share.

use crate::kernels::Isa;

/// Asserts that values are within 2e-6 of the exact ones, relative to them where they are above 1.
pub fn assert_near(values: &[f32], exact: impl Iterator<Item = f64>) {
    for (value, exact) in values.iter().zip(exact) {
        assert!((f64::from(*value) - exact).abs() <= 2e-6 * exact.abs().max(1.0), "{value} {exact}");
    }
}

/// Computes `rows` rows and asserts that every path gives the same bits, and the first row alone the bits that it has
/// among the others.
pub fn same_on_every_path(row_len: usize, compute: impl Fn(Isa, usize) -> Vec<f32>, rows: usize) -> Vec<f32> {
    let best = compute(Isa::detect(), rows);
    for isa in Isa::available() {
        assert_eq!(compute(isa, rows), best, "{isa:?}");
        assert_eq!(compute(isa, 1), best[..row_len], "{isa:?}");
    }
    best
}

/// Asserts that a gradient is what central differences of `loss = Σ weights * of(x)` are, for every value of `x`.
pub fn assert_gradient(x: &[f32], of: impl Fn(&[f32]) -> Vec<f32>, weights: &[f32], gradient: &[f32]) {
    let loss =
        |x: &[f32]| -> f64 { of(x).iter().zip(weights).map(|(y, weight)| f64::from(*y) * f64::from(*weight)).sum() };
    const STEP: f32 = 1.0 / 128.0;
    for (i, gradient) in gradient.iter().enumerate() {
        let moved = |by: f32| {
            let mut moved = x.to_vec();
            moved[i] += by;
            loss(&moved)
        };
        let difference = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        assert!((difference - f64::from(*gradient)).abs() < 2e-3, "{i}: {difference} {gradient}");
    }
}
