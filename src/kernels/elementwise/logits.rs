//! Reductions over rows of logits, for sampling and losses.

use super::math::exp;
use crate::kernels::{Isa, layout::panels::LANES, multiversion::multiversion};

/// Logits of a chunk: few enough for the first-level cache, and enough to be worth a call.
pub const CHUNK: usize = 512;

multiversion! {
    /// The greatest logit; `None` if one of them is positive infinity or NaN.
    pub fn greatest(logits: &[f32]) -> Option<f32> {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        // As wide as a logit, so that compilers vectorize it.
        let mut unusable = [0u32; LANES];
        let (whole, rest) = logits.as_chunks::<LANES>();
        for logits in whole {
            for ((lane, unusable), logit) in lanes.iter_mut().zip(&mut unusable).zip(logits) {
                *unusable |= u32::from(is_unusable(*logit));
                *lane = if *logit > *lane { *logit } else { *lane };
            }
        }
        let usable = unusable == [0; LANES] && !rest.iter().any(|logit| is_unusable(*logit));
        usable.then(|| lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max))
    }
}

#[inline(always)]
fn is_unusable(logit: f32) -> bool {
    logit.is_nan() || logit == f32::INFINITY
}

multiversion! {
    /// Writes weights `e^((logit - greatest) / temperature)` of the logits and gives their sum. They are relative to
    /// the most likely token, so nothing overflows.
    pub fn weigh(logits: &[f32], greatest: f32, temperature: f32, weights: &mut [f32]) -> f32 {
        // Finite, so that the greatest logit has the weight 1 at any temperature.
        let sharpness = (1.0 / temperature).min(f32::MAX);
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = exp((logit - greatest) * sharpness);
        }
        let (whole, rest) = weights.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for weights in whole {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight;
            }
        }
        sums.iter().chain(rest).sum()
    }
}

/// `ln Σ e^logit`.
pub fn log_sum(logits: &[f32], isa: Isa) -> f32 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights = [0f32; CHUNK];
    let sum = |logits: &[f32]| weigh(logits, greatest, 1.0, &mut weights[..logits.len()], isa);
    greatest + logits.chunks(CHUNK).map(sum).sum::<f32>().ln()
}

/// Replaces each logit by its probability times `factor`.
pub fn scaled_softmax(logits: &mut [f32], factor: f32, isa: Isa) {
    let normalizer = log_sum(logits, isa);
    let mut weights = [0f32; CHUNK];
    for logits in logits.chunks_mut(CHUNK) {
        let weights = &mut weights[..logits.len()];
        weigh(logits, normalizer, 1.0, weights, isa);
        logits.iter_mut().zip(weights).for_each(|(logit, weight)| *logit = *weight * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_formula_and_every_path_gives_the_same_bits() {
        for len in [1, 16, 37, CHUNK] {
            let logits: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1009) as f32 / 10.0 - 50.0).collect();
            let scalar = |isa| {
                let mut weights = vec![0.0; len];
                let greatest = greatest(&logits, isa).unwrap();
                let sum = weigh(&logits, greatest, 0.7, &mut weights, isa);
                (greatest, weights, sum)
            };
            let (greatest, weights, sum) = scalar(Isa::Scalar);
            assert_eq!(greatest, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let exact = |logit: f32| (f64::from(logit - greatest) / f64::from(0.7f32)).exp();
            for (weight, logit) in weights.iter().zip(&logits) {
                assert!((f64::from(*weight) - exact(*logit)).abs() <= 2e-5 * exact(*logit) + 1e-30, "{weight} {logit}");
            }
            let total: f64 = logits.iter().map(|logit| exact(*logit)).sum();
            assert!((f64::from(sum) / total - 1.0).abs() < 2e-6, "{sum} {total}");
            for isa in Isa::available() {
                assert_eq!(scalar(isa), (greatest, weights.clone(), sum), "{isa:?}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_are_found_anywhere() {
        for at in [0, 17, 40] {
            for unusable in [f32::NAN, f32::INFINITY] {
                let mut logits = [0.0; 41];
                logits[at] = unusable;
                assert!(Isa::available().into_iter().all(|isa| greatest(&logits, isa).is_none()), "{at}");
            }
        }
        assert_eq!(greatest(&[f32::NEG_INFINITY, -1.0], Isa::detect()), Some(-1.0));
    }
}
