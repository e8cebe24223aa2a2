//! What a layer does to its rows between products.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::math::{erf, exp, tanh};
use crate::kernels::{
    Isa,
    arch::panels::LANES,
    threads::{
        current_num_threads,
        parallel::{changed, filled, for_chunks_mut},
    },
};

/// Numbers below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 13;
/// Numbers that a thread takes at a time, at most: few enough for its cache.
const PIECE_LEN: usize = 1 << 14;
/// Numbers that are taken together where rows do not matter.
pub(super) const ROW_LEN: usize = 1024;

/// What a normalisation multiplies and adds.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// As long as the numbers that are normalised together, or as several pieces of them: then each piece has
    /// its own.
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    /// Numbers that are normalised together.
    pub size: usize,
    pub kind: NormKind,
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

/// `x / √(mean(x²) + eps) * weight + bias` of each piece of `x`.
pub fn normalise(x: &[f32], norm: Norm<'_>, isa: Isa) -> Vec<f32> {
    filled_rows(x.len(), norm.size, |row, out| {
        let x = &x[row * norm.size..][..norm.size];
        let weight = row * norm.size % norm.weight.len()..;
        let bias = norm.bias.map(|bias| &bias[weight.clone()]);
        let norm = Norm { weight: &norm.weight[weight], bias, ..norm };
        compiled_for!(isa, normalise_piece(x, norm, out));
    })
}

#[inline(always)]
pub fn normalise_piece(x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    let (mean, scale) = statistics(x, norm);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(norm.weight) {
        *out = (x - mean) * scale * weight;
    }
    if let Some(bias) = norm.bias {
        out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
    }
}

/// What is taken away from a piece, and what it is then multiplied by.
#[inline(always)]
pub(super) fn statistics(x: &[f32], norm: Norm<'_>) -> (f32, f32) {
    let len = x.len() as f32;
    let mean = if norm.kind == NormKind::LayerNorm { sum(x, |x, sum| x + sum) / len } else { 0.0 };
    let variance = match norm.kind {
        NormKind::LayerNorm => sum(x, |x, sum| (x - mean).mul_add(x - mean, sum)) / len,
        NormKind::RmsNorm => sum(x, |x, sum| x.mul_add(x, sum)) / len,
    };
    (mean, 1.0 / (variance + norm.eps).sqrt())
}

/// As `sum`, of pairs.
#[inline(always)]
pub(super) fn sum_of(x: &[f32], y: &[f32], add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum = add(*x, *y, *sum);
        }
    }
    sums.into_iter().sum()
}

/// Sums in as many lanes as every path has.
#[inline(always)]
fn sum(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    for x in x.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = add(*x, *sum);
        }
    }
    sums.into_iter().sum()
}

/// Which numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// The first half of those that are turned with the second half.
    NeoX,
    /// Each one with its neighbour.
    Interleaved,
}

/// Turns the first `2 * pairs` numbers of each head. `x` is `[rows, heads * head_dim]`, `cos` and `sin` are
/// `[rows, pairs]`.
pub fn rotate(
    x: &[f32],
    width: usize,
    head_dim: usize,
    (cos, sin): (&[f32], &[f32]),
    by: RopeStyle,
    isa: Isa,
) -> Vec<f32> {
    let pairs = cos.len() * width / x.len();
    changed_rows(x, width, |row, out| {
        let (cos, sin) = (&cos[row * pairs..][..pairs], &sin[row * pairs..][..pairs]);
        compiled_for!(isa, rotate_heads(out, head_dim, cos, sin, by));
    })
}

#[inline(always)]
pub fn rotate_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], by: RopeStyle) {
    for head in heads.chunks_exact_mut(head_dim) {
        let turn =
            |a: &mut f32, b: &mut f32, (cos, sin): (&f32, &f32)| (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        let turns = cos.iter().zip(sin);
        match by {
            RopeStyle::NeoX => {
                let (first, second) = head.split_at_mut(cos.len());
                first.iter_mut().zip(second).zip(turns).for_each(|((a, b), by)| turn(a, b, by));
            }
            RopeStyle::Interleaved => {
                head.as_chunks_mut().0.iter_mut().zip(turns).for_each(|([a, b], by)| turn(a, b, by));
            }
        }
    }
}

/// What a feed-forward network does between its matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`.
    Silu,
    /// `x Φ(x)` ([paper](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// As `Gelu`, approximately: `x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `x / (1 + e⁻ˢˣ)` of `s = slope` and an `x` of at most `limit`. What it is multiplied with is `up + 1`, where
    /// `up` is held between `±limit`.
    ClampedSilu { slope: f32, limit: f32 },
}

/// `activation(x)`, or `activation(x) * up`.
pub fn activate(x: &[f32], up: Option<&[f32]>, activation: Activation, isa: Isa) -> Vec<f32> {
    changed_rows(x, ROW_LEN, |row, out| {
        let up = up.map(|up| &up[row * ROW_LEN..]);
        compiled_for!(isa, activate_row(out, up, activation));
    })
}

#[inline(always)]
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

#[inline(always)]
fn each(x: &mut [f32], up: Option<&[f32]>, activation: impl Fn(f32) -> f32) {
    match up {
        Some(up) => x.iter_mut().zip(up).for_each(|(x, up)| *x = activation(*x) * up),
        None => x.iter_mut().for_each(|x| *x = activation(*x)),
    }
}

/// `x + scale * y`, number by number.
pub fn add(x: &[f32], y: &[f32], scale: f32, isa: Isa) -> Vec<f32> {
    changed_rows(x, ROW_LEN, |row, out| compiled_for!(isa, add_row(out, &y[row * ROW_LEN..], scale)))
}

/// Adds `y` to `x`, number by number.
pub fn add_to(x: &mut [f32], y: &[f32], isa: Isa) {
    for_rows(x, ROW_LEN, |row, x| compiled_for!(isa, add_row(x, &y[row * ROW_LEN..], 1.0)));
}

#[inline(always)]
pub fn add_row(x: &mut [f32], y: &[f32], scale: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = y.mul_add(scale, *x));
}

/// Multiplies by `scale`, then bounds smoothly by `softcap` if there is one.
pub fn scale_and_cap(x: &mut [f32], scale: f32, softcap: Option<f32>, isa: Isa) {
    for_rows(x, ROW_LEN, |_, x| {
        x.iter_mut().for_each(|x| *x *= scale);
        if let Some(softcap) = softcap {
            compiled_for!(isa, cap(x, softcap));
        }
    });
}

/// Bounds numbers smoothly: `softcap * tanh(x / softcap)`.
#[inline(always)]
pub fn cap(x: &mut [f32], softcap: f32) {
    x.iter_mut().for_each(|x| *x = softcap * tanh(*x / softcap));
}

/// Calls `compute` for each row of `out`.
fn for_rows(out: &mut [f32], row_len: usize, compute: impl Fn(usize, &mut [f32]) + Sync) {
    let len = piece_len(out.len(), row_len);
    for_chunks_mut(out, len, |part, out| {
        let first = part * len / row_len;
        out.chunks_mut(row_len).zip(first..).for_each(|(out, row)| compute(row, out));
    });
}

/// `all` numbers, of which `compute` fills each row; they are zeros before.
fn filled_rows(all: usize, row_len: usize, compute: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let len = piece_len(all, row_len);
    filled(all, len, |part, out| {
        let first = part * len / row_len;
        out.chunks_mut(row_len).zip(first..).for_each(|(out, row)| compute(row, out));
    })
}

/// What `change` makes of the rows of `x`.
pub(super) fn changed_rows(x: &[f32], row_len: usize, change: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let len = piece_len(x.len(), row_len);
    changed(x, len, |part, out| {
        let first = part * len / row_len;
        out.chunks_mut(row_len).zip(first..).for_each(|(out, row)| change(row, out));
    })
}

/// How many of `all` numbers a thread takes at a time, whole rows.
fn piece_len(all: usize, row_len: usize) -> usize {
    let share = if all < PARALLEL_LEN { all } else { all.div_ceil(current_num_threads()).min(PIECE_LEN) };
    share.next_multiple_of(row_len).max(row_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::noise;

    fn near(ours: &[f32], exact: impl Iterator<Item = f64>) {
        for (ours, exact) in ours.iter().zip(exact) {
            assert!((f64::from(*ours) - exact).abs() <= 2e-6 * exact.abs().max(1.0), "{ours} {exact}");
        }
    }

    /// A paths' results, alike on all of them, the first row alone giving what it gives among others.
    fn same_on_all(name: &str, row_len: usize, compute: impl Fn(Isa, usize) -> Vec<f32>, rows: usize) -> Vec<f32> {
        let best = compute(Isa::detect(), rows);
        for isa in Isa::available() {
            assert_eq!(compute(isa, rows), best, "{name} {isa:?}");
            assert_eq!(compute(isa, 1), best[..row_len], "{name} {isa:?}");
        }
        best
    }

    #[test]
    fn norms_are_the_formulas_and_every_path_gives_the_same_bits() {
        for (rows, width) in [(1, 6), (3, 48), (40, 576)] {
            let (x, weight, bias) = (noise(rows * width, 1, 5.0), noise(width, 3, 5.0), noise(width, 2, 5.0));
            for (size, centred) in [(width, false), (width, true), (width / 3, true), (width / 2, false)] {
                let kind = if centred { NormKind::LayerNorm } else { NormKind::RmsNorm };
                let norm = Norm { weight: &weight, bias: centred.then_some(&bias[..]), size, kind, eps: 1e-5 };
                let ours = same_on_all("norm", width, |isa, rows| normalise(&x[..rows * width], norm, isa), rows);
                let exact = x.chunks(size).enumerate().flat_map(|(piece, x)| {
                    let (n, at) = (size as f64, piece * size % width);
                    let mean = if centred { x.iter().map(|x| f64::from(*x)).sum::<f64>() / n } else { 0.0 };
                    let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
                    let (weight, bias) = (&weight[at..], &bias[at..]);
                    x.iter().zip(weight).zip(bias).map(move |((x, w), b)| {
                        let scaled = (f64::from(*x) - mean) * f64::from(*w) / (variance + 1e-5).sqrt();
                        if centred { scaled + f64::from(*b) } else { scaled }
                    })
                });
                near(&ours, exact);
            }
        }
    }

    #[test]
    fn activations_and_sums_are_the_formulas_and_every_path_gives_the_same_bits() {
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
            let gated = same_on_all("activation", width, gated, rows);
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
        let sums = same_on_all("sum", width, |isa, rows| add(&x[..rows * width], &y, 0.25, isa), rows);
        near(&sums, x.iter().zip(&y).map(|(x, y)| f64::from(*x) + 0.25 * f64::from(*y)));
        let mut capped = x.clone();
        scale_and_cap(&mut capped, 2.0, Some(3.0), Isa::detect());
        near(&capped, x.iter().map(|x| 3.0 * (f64::from(*x) * 2.0 / 3.0).tanh()));
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
        let gated = same_on_all("activation", width, gated, rows);
        near(&gated, x.iter().zip(&up).map(|(x, up)| silu(*x) * (f64::from(*up).clamp(-3.0, 3.0) + 1.0)));
        near(&activate(&x, None, activation, Isa::detect()), x.iter().map(|x| silu(*x)));
        for (x, up) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(activate(&[x], Some(&[up]), activation, Isa::detect())[0].is_nan());
        }
    }

    #[test]
    fn heads_turn_by_halves_or_by_neighbours() {
        // Of each head of 8 numbers 6 are turned.
        let (rows, width, head_dim, pairs) = (40, 48, 8, 3);
        let (x, cos, sin) = (noise(rows * width, 1, 5.0), noise(rows * pairs, 4, 5.0), noise(rows * pairs, 5, 5.0));
        for by in [RopeStyle::NeoX, RopeStyle::Interleaved] {
            let turn = |isa, rows: usize| {
                let angles = (&cos[..rows * pairs], &sin[..rows * pairs]);
                rotate(&x[..rows * width], width, head_dim, angles, by, isa)
            };
            let ours = same_on_all("rotation", width, turn, rows);
            let exact = (0..x.len()).map(|i| {
                let (row, within, of) = (i / width, i % head_dim, |i: usize| f64::from(x[i]));
                let (pair, partner, first) = match by {
                    _ if within >= 2 * pairs => return of(i),
                    RopeStyle::NeoX if within < pairs => (within, i + pairs, true),
                    RopeStyle::NeoX => (within - pairs, i - pairs, false),
                    RopeStyle::Interleaved => (within / 2, i ^ 1, within % 2 == 0),
                };
                let (cos, sin) = (f64::from(cos[row * pairs + pair]), f64::from(sin[row * pairs + pair]));
                if first { of(i) * cos - of(partner) * sin } else { of(partner) * sin + of(i) * cos }
            });
            near(&ours, exact);
        }
    }
}
