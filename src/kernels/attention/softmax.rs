//! Online softmax ([paper](https://arxiv.org/abs/1805.02867)) over keys that are read part by part.

use std::ops::Range;

use crate::kernels::{
    Isa,
    elementwise::{cap, math::exp},
    layout::panels::LANES,
    memory::prefetch::Prefetcher,
    multiversion::multiversion,
};

/// Attention to some of the keys, before the division by the sum of their weights.
#[derive(Default)]
pub struct PartialAttention {
    /// `[queries]`.
    pub softmaxes: Vec<SoftmaxState>,
    /// `[queries, padded_dim]`.
    pub values: Vec<f32>,
}

/// The state of a query's softmax: its weights are `exp(score - max)`.
#[derive(Debug, Clone, Copy)]
pub struct SoftmaxState {
    pub max: f32,
    /// The sum of the weights; zero without keys.
    pub sum: f32,
}

impl PartialAttention {
    /// Resets it to no keys.
    pub fn clear(&mut self) {
        self.softmaxes.clear();
        self.values.clear();
    }

    /// Adds the next keys.
    pub fn merge(&mut self, part: &Self, isa: Isa) {
        if self.softmaxes.is_empty() {
            self.softmaxes.extend_from_slice(&part.softmaxes);
            self.values.extend_from_slice(&part.values);
            return;
        }
        let dim = self.values.len() / self.softmaxes.len();
        let values = self.values.chunks_exact_mut(dim).zip(part.values.chunks_exact(dim));
        for ((softmax, next), (values, next_values)) in self.softmaxes.iter_mut().zip(&part.softmaxes).zip(values) {
            if next.sum == 0.0 {
                continue;
            }
            if softmax.sum == 0.0 {
                *softmax = *next;
                values.copy_from_slice(next_values);
                continue;
            }
            *softmax = merge_values(values, *softmax, next_values, *next, isa);
        }
    }
}

multiversion! {
    /// Adds the weighted values of the next keys, both rescaled to the greater maximum.
    pub fn merge_values(
        values: &mut [f32],
        softmax: SoftmaxState,
        next_values: &[f32],
        next: SoftmaxState,
    ) -> SoftmaxState {
        let max = softmax.max.max(next.max);
        let (ours, theirs) = (exp(softmax.max - max), exp(next.max - max));
        for (value, next) in values.iter_mut().zip(next_values) {
            *value = *value * ours + next * theirs;
        }
        SoftmaxState { max, sum: softmax.sum * ours + next.sum * theirs }
    }
}

/// Turns scores into weights. Scores outside of `seen` get the weight zero.
pub fn softmax(
    scores: &mut [f32],
    seen: Range<usize>,
    softcap: Option<f32>,
    ahead: &mut Prefetcher<'_>,
    isa: Isa,
) -> SoftmaxState {
    if seen.is_empty() {
        return SoftmaxState { max: f32::NEG_INFINITY, sum: 0.0 };
    }
    let lanes = seen.start / LANES * LANES;
    let scores = &mut scores[lanes..seen.end.next_multiple_of(LANES)];
    if let Some(softcap) = softcap {
        cap(scores, softcap, isa);
    }
    scores[..seen.start - lanes].fill(f32::NEG_INFINITY);
    scores[seen.end - lanes..].fill(f32::NEG_INFINITY);
    let (max, sum) = softmax_of_lanes(scores, ahead, isa);
    SoftmaxState { max, sum }
}

/// The cost of the softmax of [`LANES`] scores, in units of work of the [`Prefetcher`].
pub const SOFTMAX_WORK: usize = 24;

/// Turns scores, a multiple of [`LANES`], into `exp(score - max)`. Returns `max` and the sum.
#[inline(always)]
pub fn softmax_lanes(scores: &mut [f32], ahead: &mut Prefetcher<'_>) -> (f32, f32) {
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let mut max = [f32::NEG_INFINITY; LANES];
    for scores in scores.iter() {
        for lane in 0..LANES {
            max[lane] = if scores[lane] > max[lane] { scores[lane] } else { max[lane] };
        }
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; LANES];
    for scores in scores {
        ahead.step(SOFTMAX_WORK);
        for lane in 0..LANES {
            scores[lane] = exp(scores[lane] - max);
            sums[lane] += scores[lane];
        }
    }
    (max, sums.into_iter().sum())
}

multiversion! {
    fn softmax_of_lanes(scores: &mut [f32], ahead: &mut Prefetcher<'_>) -> (f32, f32) {
        softmax_lanes(scores, ahead)
    }
}
