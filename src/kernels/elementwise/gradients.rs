//! What takes gradients back through what a layer does to its rows between products.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::{
    math::{erf, exp, tanh},
    rows::{self, Activation, Norm, NormKind, ROW_LEN, changed_rows, statistics, sum_of},
};
use crate::kernels::Isa;

/// Of `normalise`, by `x`: from the gradient of its result.
pub fn normalise(x: &[f32], gradient: &[f32], norm: Norm<'_>, isa: Isa) -> Vec<f32> {
    changed_rows(gradient, norm.size, |row, out| {
        let x = &x[row * norm.size..][..norm.size];
        let weight = &norm.weight[row * norm.size % norm.weight.len()..][..norm.size];
        compiled_for!(isa, normalise_gradient(x, Norm { weight, bias: None, ..norm }, out));
    })
}

/// `out` is the gradient of the result first.
#[inline(always)]
pub fn normalise_gradient(x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    let (mean, scale) = statistics(x, norm);
    out.iter_mut().zip(norm.weight).for_each(|(out, weight)| *out *= weight);
    let len = x.len() as f32;
    // What changes the statistics is taken away.
    let along = sum_of(x, out, |x, out, sum| ((x - mean) * scale).mul_add(out, sum)) / len;
    let shift = if norm.kind == NormKind::LayerNorm { sum_of(x, out, |_, out, sum| out + sum) / len } else { 0.0 };
    for (out, x) in out.iter_mut().zip(x) {
        *out = scale * (*out - shift - (x - mean) * scale * along);
    }
}

/// Of `activate`, by `x` and by `up`: from the gradient of its result.
pub fn activate(
    x: &[f32],
    up: Option<&[f32]>,
    gradient: &[f32],
    activation: Activation,
    isa: Isa,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let grad_x = changed_rows(gradient, ROW_LEN, |row, out| {
        let at = row * ROW_LEN;
        compiled_for!(isa, activate_gradient(&x[at..], up.map(|up| &up[at..]), activation, out));
    });
    let grad_up = up.map(|up| match activation {
        Activation::ClampedSilu { limit, .. } => {
            let mut grad_up = rows::activate(x, None, activation, isa);
            let held = |up: f32| if up.abs() < limit { 1.0 } else { 0.0 };
            grad_up.iter_mut().zip(gradient).zip(up).for_each(|((by, gradient), up)| *by *= gradient * held(*up));
            grad_up
        }
        _ => rows::activate(x, Some(gradient), activation, isa),
    });
    (grad_x, grad_up)
}

/// `out` is the gradient of the result first.
#[inline(always)]
pub fn activate_gradient(x: &[f32], up: Option<&[f32]>, activation: Activation, out: &mut [f32]) {
    match activation {
        Activation::Silu => slopes(x, out, |x| {
            let gate = 1.0 / (1.0 + exp(-x));
            gate * (1.0 - gate).mul_add(x, 1.0)
        }),
        Activation::Gelu => slopes(x, out, |x| {
            let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp(-0.5 * x * x);
            x.mul_add(density, 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)))
        }),
        Activation::GeluTanh => slopes(x, out, |x| {
            const SCALE: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            let bent = tanh(SCALE * (x * x * x).mul_add(0.044_715, x));
            let slope = SCALE * (x * x).mul_add(3.0 * 0.044_715, 1.0);
            0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent * bent) * slope
        }),
        Activation::Relu => slopes(x, out, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        Activation::ReluSquared => slopes(x, out, |x| if x > 0.0 { 2.0 * x } else { 0.0 }),
        Activation::ClampedSilu { slope, limit } => slopes(x, out, |x| {
            let gate = 1.0 / (1.0 + exp(-slope * x));
            if x < limit { gate * (1.0 - gate).mul_add(slope * x, 1.0) } else { 0.0 }
        }),
    }
    if let Some(up) = up {
        match activation {
            Activation::ClampedSilu { limit, .. } => {
                out.iter_mut().zip(up).for_each(|(out, up)| *out *= up.clamp(-limit, limit) + 1.0);
            }
            _ => out.iter_mut().zip(up).for_each(|(out, up)| *out *= up),
        }
    }
}

#[inline(always)]
fn slopes(x: &[f32], out: &mut [f32], slope: impl Fn(f32) -> f32) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out *= slope(*x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{elementwise::rows, noise};

    /// Holds a gradient against differences of what it is of, for every number of `x`.
    fn holds(x: &[f32], of: impl Fn(&[f32]) -> Vec<f32>, weights: &[f32], gradient: &[f32]) {
        let loss = |x: &[f32]| -> f64 {
            of(x).iter().zip(weights).map(|(y, weight)| f64::from(*y) * f64::from(*weight)).sum()
        };
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

    #[test]
    fn norms() {
        for (size, weights, kind) in [
            (24, 24, NormKind::RmsNorm),
            (24, 24, NormKind::LayerNorm),
            (8, 24, NormKind::LayerNorm),
            (12, 12, NormKind::RmsNorm),
        ] {
            let (x, weight, up) = (noise(48, 1, 2.0), noise(weights, 2, 2.0), noise(48, 3, 2.0));
            let norm = Norm { weight: &weight, bias: None, size, kind, eps: 1e-5 };
            for isa in Isa::available() {
                holds(&x, |x| rows::normalise(x, norm, isa), &up, &normalise(&x, &up, norm, isa));
            }
        }
    }

    #[test]
    fn activations() {
        // No number is where a slope jumps.
        let smooth = |x: f32| if x.abs() < 0.05 || (x.abs() - 1.3).abs() < 0.05 { 0.3 } else { x };
        let [x, up] = [1, 2].map(|seed| noise(40, seed, 2.0).into_iter().map(smooth).collect::<Vec<_>>());
        let weights = noise(40, 3, 2.0);
        let clamped = Activation::ClampedSilu { slope: 1.702, limit: 1.3 };
        let usual =
            [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::ReluSquared];
        let all = usual.into_iter().chain([clamped]);
        for (activation, isa) in
            all.into_iter().flat_map(|activation| Isa::available().into_iter().map(move |isa| (activation, isa)))
        {
            let (grad_x, grad_up) = activate(&x, Some(&up), &weights, activation, isa);
            holds(&x, |x| rows::activate(x, Some(&up), activation, isa), &weights, &grad_x);
            holds(&up, |up| rows::activate(&x, Some(up), activation, isa), &weights, &grad_up.unwrap());
            let (grad_x, _) = activate(&x, None, &weights, activation, isa);
            holds(&x, |x| rows::activate(x, None, activation, isa), &weights, &grad_x);
        }
    }
}
