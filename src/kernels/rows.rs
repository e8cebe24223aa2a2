//! What a layer does to its rows between products.

use rayon::prelude::*;

use super::{Isa, math::exp, panels::LANES};

/// Numbers below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 14;
/// Numbers that are taken together where rows do not matter.
const ROW_LEN: usize = 1024;

/// `x / √(mean(x²) + eps) * weight` of each row ([paper](https://arxiv.org/abs/1910.07467)).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, isa: Isa) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    for_rows(&mut out, weight.len(), |row, out| {
        let x = &x[row * weight.len()..][..weight.len()];
        compiled_for!(isa, normalise(x, weight, eps, out));
    });
    out
}

#[inline(always)]
pub fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut sums = [0f32; LANES];
    for x in x.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = x.mul_add(*x, *sum);
        }
    }
    let mean = sums.into_iter().sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// Turns the first `2 * pairs` numbers of each head, the first half of them paired with the second. `x` is
/// `[rows, heads * head_dim]`, `cos` and `sin` are `[rows, pairs]`.
pub fn rotate(x: &[f32], heads: usize, head_dim: usize, (cos, sin): (&[f32], &[f32]), isa: Isa) -> Vec<f32> {
    let width = heads * head_dim;
    let pairs = cos.len() * width / x.len();
    let mut out = x.to_vec();
    for_rows(&mut out, width, |row, out| {
        let (cos, sin) = (&cos[row * pairs..][..pairs], &sin[row * pairs..][..pairs]);
        compiled_for!(isa, rotate_heads(out, head_dim, cos, sin));
    });
    out
}

#[inline(always)]
pub fn rotate_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in heads.chunks_exact_mut(head_dim) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// `silu(gate) * up`, with `silu(x) = x / (1 + e⁻ˣ)`.
pub fn silu_times(gate: &[f32], up: &[f32], isa: Isa) -> Vec<f32> {
    let mut out = gate.to_vec();
    for_rows(&mut out, ROW_LEN, |row, out| compiled_for!(isa, multiply_silu(out, &up[row * ROW_LEN..])));
    out
}

#[inline(always)]
pub fn multiply_silu(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `x + y`, number by number.
pub fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    for_rows(&mut out, ROW_LEN, |row, out| out.iter_mut().zip(&y[row * ROW_LEN..]).for_each(|(x, y)| *x += y));
    out
}

/// Calls `compute` for each row of `out`.
fn for_rows(out: &mut [f32], row_len: usize, compute: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() < PARALLEL_LEN {
        out.chunks_mut(row_len).enumerate().for_each(|(row, out)| compute(row, out));
        return;
    }
    let share = out.len().div_ceil(rayon::current_num_threads()).next_multiple_of(row_len);
    out.par_chunks_mut(share).enumerate().for_each(|(part, out)| {
        let first = part * share / row_len;
        out.chunks_mut(row_len).enumerate().for_each(|(row, out)| compute(first + row, out));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 100.0 - 5.0).collect()
    }

    fn near(ours: &[f32], exact: impl Iterator<Item = f64>) {
        for (ours, exact) in ours.iter().zip(exact) {
            assert!((f64::from(*ours) - exact).abs() <= 2e-6 * exact.abs().max(1.0), "{ours} {exact}");
        }
    }

    #[test]
    fn rows_are_the_formulas_and_every_path_gives_the_same_bits() {
        for (rows, width) in [(1, 6), (3, 48), (40, 576)] {
            let (x, y, weight) = (noise(rows * width, 1), noise(rows * width, 2), noise(width, 3));
            let (cos, sin) = (noise(rows * 3, 4), noise(rows * 3, 5));
            for isa in Isa::available() {
                let norm = rms_norm(&x, &weight, 1e-5, isa);
                near(
                    &norm,
                    x.chunks(width).flat_map(|x| {
                        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                        let weight = &weight;
                        x.iter().zip(weight).map(move |(x, w)| f64::from(*x) * f64::from(*w) / (mean + 1e-5).sqrt())
                    }),
                );
                let gated = silu_times(&x, &y, isa);
                let silu = |x: f64| x / (1.0 + (-x).exp());
                near(&gated, x.iter().zip(&y).map(|(x, y)| silu(f64::from(*x)) * f64::from(*y)));
                let sum = add(&x, &y);
                near(&sum, x.iter().zip(&y).map(|(x, y)| f64::from(*x) + f64::from(*y)));
                let turned = rotate(&x, width / 6, 6, (&cos, &sin), isa);
                near(
                    &turned,
                    (0..x.len()).map(|i| {
                        let (row, pair, of) = (i / width, i % 3, |i: usize| f64::from(x[i]));
                        let (cos, sin) = (f64::from(cos[row * 3 + pair]), f64::from(sin[row * 3 + pair]));
                        if i % 6 < 3 { of(i) * cos - of(i + 3) * sin } else { of(i - 3) * sin + of(i) * cos }
                    }),
                );
                let scalar = Isa::Scalar;
                assert_eq!(norm, rms_norm(&x, &weight, 1e-5, scalar), "{isa:?}");
                assert_eq!(gated, silu_times(&x, &y, scalar), "{isa:?}");
                assert_eq!(turned, rotate(&x, width / 6, 6, (&cos, &sin), scalar), "{isa:?}");
                // A row's result is its own.
                assert_eq!(norm[..width], rms_norm(&x[..width], &weight, 1e-5, isa));
                assert_eq!(turned[..width], rotate(&x[..width], width / 6, 6, (&cos[..3], &sin[..3]), isa));
            }
        }
    }
}
