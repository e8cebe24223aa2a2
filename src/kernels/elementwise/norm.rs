//! Normalization of vectors, and its gradient.

use super::rows::{changed_rows, filled_rows, sum, sum_of};
use crate::kernels::{Isa, multiversion::multiversion};

/// A normalization and its parameters.
#[derive(Clone, Copy)]
pub struct NormParams<'a> {
    /// Scales of the values. Where it is longer than `size`, consecutive vectors take turns with its pieces.
    pub weight: &'a [f32],
    /// Offsets of the values, as long as `weight`.
    pub bias: Option<&'a [f32]>,
    /// Values that are normalized together.
    pub size: usize,
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
}

/// How a vector is normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean(x)) / √(variance(x) + eps)` ([paper](https://arxiv.org/abs/1607.06450)).
    LayerNorm,
    /// `x / √(mean(x²) + eps)` ([paper](https://arxiv.org/abs/1910.07467)).
    RmsNorm,
}

/// Normalizes each `norm.size` values of `x`, then multiplies with the weight and adds the bias.
pub fn normalize(x: &[f32], norm: NormParams<'_>, isa: Isa) -> Vec<f32> {
    filled_rows(x.len(), norm.size, |row, out| {
        let x = &x[row * norm.size..][..norm.size];
        let weight = row * norm.size % norm.weight.len()..;
        let bias = norm.bias.map(|bias| &bias[weight.clone()]);
        let norm = NormParams { weight: &norm.weight[weight], bias, ..norm };
        normalize_vector(x, norm, out, isa);
    })
}

/// The gradient of [`normalize`] with respect to `x`, from the gradient of its result.
pub fn normalize_gradient(x: &[f32], gradient: &[f32], norm: NormParams<'_>, isa: Isa) -> Vec<f32> {
    changed_rows(gradient, norm.size, |row, out| {
        let x = &x[row * norm.size..][..norm.size];
        let weight = &norm.weight[row * norm.size % norm.weight.len()..][..norm.size];
        vector_gradient(x, NormParams { weight, bias: None, ..norm }, out, isa);
    })
}

multiversion! {
    fn normalize_vector(x: &[f32], norm: NormParams<'_>, out: &mut [f32]) {
        let (mean, scale) = statistics(x, norm);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(norm.weight) {
            *out = (x - mean) * scale * weight;
        }
        if let Some(bias) = norm.bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }

    /// `grad` is the gradient of the result before, and with respect to `x` after.
    fn vector_gradient(x: &[f32], norm: NormParams<'_>, grad: &mut [f32]) {
        let (mean, scale) = statistics(x, norm);
        grad.iter_mut().zip(norm.weight).for_each(|(grad, weight)| *grad *= weight);
        let len = x.len() as f32;
        // The statistics depend on `x`, too: the gradient loses its parts along the result and along the mean.
        let along = sum_of(x, grad, |x, grad, sum| ((x - mean) * scale).mul_add(grad, sum)) / len;
        let shift = match norm.kind {
            NormKind::LayerNorm => sum_of(x, grad, |_, grad, sum| grad + sum) / len,
            NormKind::RmsNorm => 0.0,
        };
        for (grad, x) in grad.iter_mut().zip(x) {
            *grad = scale * (*grad - shift - (x - mean) * scale * along);
        }
    }
}

/// The mean that a vector loses, and the factor that it is then multiplied with.
#[inline(always)]
fn statistics(x: &[f32], norm: NormParams<'_>) -> (f32, f32) {
    let len = x.len() as f32;
    let mean = if norm.kind == NormKind::LayerNorm { sum(x, |x, sum| x + sum) / len } else { 0.0 };
    let variance = match norm.kind {
        NormKind::LayerNorm => sum(x, |x, sum| (x - mean).mul_add(x - mean, sum)) / len,
        NormKind::RmsNorm => sum(x, |x, sum| x.mul_add(x, sum)) / len,
    };
    (mean, 1.0 / (variance + norm.eps).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{
        elementwise::testing::{assert_gradient, assert_near, same_on_every_path},
        noise,
    };

    #[test]
    fn norms_are_the_formulas_and_every_path_gives_the_same_bits() {
        for (rows, width) in [(1, 6), (3, 48), (40, 576)] {
            let (x, weight, bias) = (noise(rows * width, 1, 5.0), noise(width, 3, 5.0), noise(width, 2, 5.0));
            for (size, layer_norm) in [(width, false), (width, true), (width / 3, true), (width / 2, false)] {
                let kind = if layer_norm { NormKind::LayerNorm } else { NormKind::RmsNorm };
                let norm = NormParams { weight: &weight, bias: layer_norm.then_some(&bias[..]), size, kind, eps: 1e-5 };
                let ours = same_on_every_path(width, |isa, rows| normalize(&x[..rows * width], norm, isa), rows);
                let exact = x.chunks(size).enumerate().flat_map(|(piece, x)| {
                    let (n, at) = (size as f64, piece * size % width);
                    let mean = if layer_norm { x.iter().map(|x| f64::from(*x)).sum::<f64>() / n } else { 0.0 };
                    let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
                    let (weight, bias) = (&weight[at..], &bias[at..]);
                    x.iter().zip(weight).zip(bias).map(move |((x, w), b)| {
                        let scaled = (f64::from(*x) - mean) * f64::from(*w) / (variance + 1e-5).sqrt();
                        if layer_norm { scaled + f64::from(*b) } else { scaled }
                    })
                });
                assert_near(&ours, exact);
            }
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_result() {
        for (size, weights, kind) in [
            (24, 24, NormKind::RmsNorm),
            (24, 24, NormKind::LayerNorm),
            (8, 24, NormKind::LayerNorm),
            (12, 12, NormKind::RmsNorm),
        ] {
            let (x, weight, up) = (noise(48, 1, 2.0), noise(weights, 2, 2.0), noise(48, 3, 2.0));
            let norm = NormParams { weight: &weight, bias: None, size, kind, eps: 1e-5 };
            for isa in Isa::available() {
                assert_gradient(&x, |x| normalize(x, norm, isa), &up, &normalize_gradient(&x, &up, norm, isa));
            }
        }
    }
}
