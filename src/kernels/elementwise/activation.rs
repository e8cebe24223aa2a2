//! Activation functions of feed-forward networks, and their gradients.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::{
    math::{erf, exp, tanh},
    rows::{ROW_LEN, changed_rows},
};
use crate::kernels::{Isa, multiversion::multiversion};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)` ([paper](https://arxiv.org/abs/1702.03118)).
    Silu,
    /// `x Φ(x)` ([paper](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// `x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`, which is near `Gelu`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²` ([paper](https://arxiv.org/abs/2109.08668)).
    ReluSquared,
    /// `x / (1 + e⁻ˢˣ)` with `s = slope` and `x` of at most `limit`, times `up + 1` with `up` between `±limit`.
    ClampedSilu { slope: f32, limit: f32 },
}

/// `activation(x)`, or `activation(x) * up` ([gated](https://arxiv.org/abs/2002.05202)).
pub fn activate(x: &[f32], up: Option<&[f32]>, activation: Activation, isa: Isa) -> Vec<f32> {
    changed_rows(x, ROW_LEN, |row, out| {
        let up = up.map(|up| &up[row * ROW_LEN..]);
        activate_row(out, up, activation, isa);
    })
}

/// The gradients of [`activate`] with respect to `x` and to `up`, from the gradient of its result.
pub fn activate_gradient(
    x: &[f32],
    up: Option<&[f32]>,
    gradient: &[f32],
    activation: Activation,
    isa: Isa,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let grad_x = changed_rows(gradient, ROW_LEN, |row, grad| {
        let at = row * ROW_LEN;
        row_gradient(&x[at..], up.map(|up| &up[at..]), activation, grad, isa);
    });
    let grad_up = up.map(|up| match activation {
        Activation::ClampedSilu { limit, .. } => {
            let mut grad_up = activate(x, None, activation, isa);
            let held = |up: f32| if up.abs() < limit { 1.0 } else { 0.0 };
            grad_up.iter_mut().zip(gradient).zip(up).for_each(|((by, gradient), up)| *by *= gradient * held(*up));
            grad_up
        }
        _ => activate(x, Some(gradient), activation, isa),
    });
    (grad_x, grad_up)
}

multiversion! {
    /// Replaces `x` by the result.
    pub fn activate_row(x: &mut [f32], up: Option<&[f32]>, activation: Activation) {
        match activation {
            Activation::Silu => each(x, up, |x| x / (1.0 + exp(-x))),
            Activation::Gelu => each(x, up, |x| 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))),
            Activation::GeluTanh => {
                const SCALE: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
                each(x, up, |x| 0.5 * x * (1.0 + tanh(SCALE * (x * x * x).mul_add(0.044_715, x))));
            }
            Activation::Relu => each(x, up, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::ReluSquared => each(x, up, |x| if x < 0.0 { 0.0 } else { x * x }),
            Activation::ClampedSilu { slope, limit } => {
                let below = |x: f32| if x > limit { limit } else { x };
                let within = |x: f32| if x < -limit { -limit } else { below(x) };
                let silu = |x: f32| below(x) / (1.0 + exp(-slope * below(x)));
                match up {
                    Some(up) => x.iter_mut().zip(up).for_each(|(x, up)| *x = silu(*x) * (within(*up) + 1.0)),
                    None => each(x, None, silu),
                }
            }
        }
    }

    /// `grad` is the gradient of the result before, and with respect to `x` after.
    fn row_gradient(x: &[f32], up: Option<&[f32]>, activation: Activation, grad: &mut [f32]) {
        match activation {
            Activation::Silu => multiply_slopes(x, grad, |x| {
                let gate = 1.0 / (1.0 + exp(-x));
                gate * (1.0 - gate).mul_add(x, 1.0)
            }),
            Activation::Gelu => multiply_slopes(x, grad, |x| {
                let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp(-0.5 * x * x);
                x.mul_add(density, 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)))
            }),
            Activation::GeluTanh => multiply_slopes(x, grad, |x| {
                const SCALE: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
                let bent = tanh(SCALE * (x * x * x).mul_add(0.044_715, x));
                let slope = SCALE * (x * x).mul_add(3.0 * 0.044_715, 1.0);
                0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent * bent) * slope
            }),
            Activation::Relu => multiply_slopes(x, grad, |x| if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::ReluSquared => multiply_slopes(x, grad, |x| if x > 0.0 { 2.0 * x } else { 0.0 }),
            Activation::ClampedSilu { slope, limit } => multiply_slopes(x, grad, |x| {
                let gate = 1.0 / (1.0 + exp(-slope * x));
                if x < limit { gate * (1.0 - gate).mul_add(slope * x, 1.0) } else { 0.0 }
            }),
        }
        if let Some(up) = up {
            match activation {
                Activation::ClampedSilu { limit, .. } => {
                    grad.iter_mut().zip(up).for_each(|(grad, up)| *grad *= up.clamp(-limit, limit) + 1.0);
                }
                _ => grad.iter_mut().zip(up).for_each(|(grad, up)| *grad *= up),
            }
        }
    }
}

/// Replaces each value by `activation` of it, times `up`.
#[inline(always)]
fn each(x: &mut [f32], up: Option<&[f32]>, activation: impl Fn(f32) -> f32) {
    match up {
        Some(up) => x.iter_mut().zip(up).for_each(|(x, up)| *x = activation(*x) * up),
        None => x.iter_mut().for_each(|x| *x = activation(*x)),
    }
}

/// Multiplies each gradient with the slope at its `x`.
#[inline(always)]
fn multiply_slopes(x: &[f32], grad: &mut [f32], slope: impl Fn(f32) -> f32) {
    grad.iter_mut().zip(x).for_each(|(grad, x)| *grad *= slope(*x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{
        elementwise::testing::{assert_gradient, assert_near, same_on_every_path},
        noise,
    };

    #[test]
    fn activations_are_the_formulas_and_every_path_gives_the_same_bits() {
        let (rows, width) = (40, 576);
        let (x, y) = (noise(rows * width, 1, 5.0), noise(rows * width, 2, 5.0));
        let tanh = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
        type Case = (Activation, fn(f64) -> f64, f64);
        let exact: [Case; 5] = [
            (Activation::Silu, |x| x / (1.0 + (-x).exp()), 0.0),
            // Both are less than 5e-4 apart.
            (Activation::Gelu, tanh, 5e-4),
            (Activation::GeluTanh, tanh, 0.0),
            (Activation::Relu, |x| x.max(0.0), 0.0),
            (Activation::ReluSquared, |x| x.max(0.0).powi(2), 0.0),
        ];
        for (activation, exact, tolerance) in exact {
            let gated = |isa, rows| activate(&x[..rows * width], Some(&y), activation, isa);
            let gated = same_on_every_path(width, gated, rows);
            let plain = activate(&x, None, activation, Isa::detect());
            for (i, (gated, plain)) in gated.iter().zip(&plain).enumerate() {
                let exact = exact(f64::from(x[i]));
                assert!((f64::from(*plain) - exact).abs() < tolerance + 2e-6 * exact.abs().max(1.0), "{activation:?}");
                assert!((gated - plain * y[i]).abs() < 1e-5, "{activation:?}");
            }
        }
        // Far from zero, nothing but limits.
        for (activation, limits) in [(Activation::Silu, [0.0, 200.0]), (Activation::Gelu, [0.0, 200.0])] {
            let ours = activate(&[-200.0, 200.0], None, activation, Isa::detect());
            assert!(ours.iter().zip(limits).all(|(ours, limit)| (ours - limit).abs() < 1e-6), "{ours:?}");
        }
    }

    #[test]
    fn clamped_activations_are_the_formula_and_every_path_gives_the_same_bits() {
        let (rows, width) = (40, 576);
        let (x, up) = (noise(rows * width, 1, 5.0), noise(rows * width, 2, 5.0));
        let activation = Activation::ClampedSilu { slope: 1.702, limit: 3.0 };
        let silu = |x: f32| {
            let x = f64::from(x).min(3.0);
            x / (1.0 + (-1.702 * x).exp())
        };
        let gated = |isa, rows| activate(&x[..rows * width], Some(&up), activation, isa);
        let gated = same_on_every_path(width, gated, rows);
        assert_near(&gated, x.iter().zip(&up).map(|(x, up)| silu(*x) * (f64::from(*up).clamp(-3.0, 3.0) + 1.0)));
        assert_near(&activate(&x, None, activation, Isa::detect()), x.iter().map(|x| silu(*x)));
        for (x, up) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(activate(&[x], Some(&[up]), activation, Isa::detect())[0].is_nan());
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_result() {
        // No value is where a slope jumps.
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
            let (grad_x, grad_up) = activate_gradient(&x, Some(&up), &weights, activation, isa);
            assert_gradient(&x, |x| activate(x, Some(&up), activation, isa), &weights, &grad_x);
            assert_gradient(&up, |up| activate(&x, Some(up), activation, isa), &weights, &grad_up.unwrap());
            let (grad_x, _) = activate_gradient(&x, None, &weights, activation, isa);
            assert_gradient(&x, |x| activate(x, None, activation, isa), &weights, &grad_x);
        }
    }
}
