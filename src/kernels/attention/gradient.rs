//! Attention within whole sequences, as training needs it, and its gradients. Scores are computed anew on the way
//! back ([FlashAttention](https://arxiv.org/abs/2205.14135), algorithm 4), a few queries at a time.

use std::ops::Range;

use super::{
    attend::attend,
    heads::{BLOCK_TOKENS, Heads},
    kv_dtype::KvDtype,
    paged_cache::{PagedCache, PagedSequence},
    scoring::{Scoring, slope},
    softmax::softmax_lanes,
};
use crate::kernels::{
    Isa,
    elementwise::math::{exp, tanh},
    layout::panels::{LANES, PanelProduct, Panels},
    memory::prefetch::Prefetcher,
    multiversion::multiversion,
    threads::parallel::{filled, map},
};

/// Queries whose scores are there at once.
const TILE_QUERIES: usize = 48;
/// HeadRows whose gradients a thread adds up at a time.
const SUMMED_ROWS: usize = 32;

/// PackedSequences of these lengths, whose rows are one after another.
#[derive(Clone, Copy)]
pub struct PackedSequences<'a> {
    pub lens: &'a [usize],
    pub heads: Heads,
    pub scoring: Scoring<'a>,
}

/// What rows take from the rows of their sequence up to their own, `[rows, num_heads * head_dim]`, by queries of that
/// shape, and keys and values, `[rows, num_kv_heads * head_dim]`.
pub fn forward(sequences: PackedSequences<'_>, [queries, keys, values]: [&[f32]; 3], isa: Isa) -> Vec<f32> {
    let PackedSequences { lens, heads, scoring } = sequences;
    let blocks: usize = lens.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).sum();
    let ids: Vec<u32> = (0..blocks as u32).collect();
    let mut cache = PagedCache::new(heads, blocks, KvDtype::F32).expect("as much memory as the keys take");
    let (mut in_blocks, mut first) = (Vec::new(), 0);
    for len in lens {
        let blocks = len.div_ceil(BLOCK_TOKENS);
        in_blocks.push(PagedSequence { rows: *len, context_len: *len, blocks: &ids[first..first + blocks] });
        first += blocks;
    }
    cache.store(&in_blocks, keys, values, isa);
    attend(cache.view(&in_blocks), queries, scoring, isa)
}

/// The gradients by queries, keys and values, from the result of `forward` and its gradient.
pub fn backward(
    sequences: PackedSequences<'_>,
    numbers @ [queries, keys, values]: [&[f32]; 3],
    out: &[f32],
    gradient: &[f32],
    isa: Isa,
) -> [Vec<f32>; 3] {
    let PackedSequences { lens, heads, scoring } = sequences;
    let starts = lens.iter().scan(0, |next, len| Some((std::mem::replace(next, *next + len), *len)));
    let starts: Vec<(usize, usize)> = starts.collect();
    let tasks: Vec<_> = starts.iter().flat_map(|span| (0..heads.num_heads).map(move |head| (*span, head))).collect();
    let gradients = map(&tasks, |_, ((start, len), head)| {
        let kv_head = head / (heads.num_heads / heads.num_kv_heads);
        let piece = |all: &[f32], head, count| HeadRows::of_head(all, *start, *len, head, count, heads.head_dim);
        HeadAttention {
            scoring,
            sink: scoring.sinks.map(|sinks| sinks[*head]),
            fall: scoring.alibi.map(|alibi| alibi * slope(*head, heads.num_heads)),
            queries: piece(queries, *head, heads.num_heads),
            keys: piece(keys, kv_head, heads.num_kv_heads),
            values: piece(values, kv_head, heads.num_kv_heads),
            out: piece(out, *head, heads.num_heads),
            gradient: piece(gradient, *head, heads.num_heads),
            isa,
        }
        .backward()
    });
    // Of key/value heads those of all query heads that share them are added up.
    let sums = |which: usize, shared: usize| {
        let (count, head_dim) = (heads.num_heads / shared, heads.head_dim);
        let width = count * head_dim;
        filled(numbers[which].len(), SUMMED_ROWS * width, |part, sums| {
            for (row, sums) in sums.chunks_mut(width).enumerate() {
                let row = part * SUMMED_ROWS + row;
                let sequence = starts.partition_point(|(start, _)| *start <= row) - 1;
                let of_sequence = &gradients[sequence * heads.num_heads..][..heads.num_heads];
                for (gradients, head) in of_sequence.iter().zip(0..) {
                    let gradients: &[HeadRows; 3] = gradients;
                    let sums = &mut sums[head / shared * head_dim..][..head_dim];
                    let own = gradients[which].row(row - starts[sequence].0);
                    sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                }
            }
        })
    };
    let group = heads.group();
    [sums(0, 1), sums(1, group), sums(2, group)]
}

/// The rows of one head, each filled up with zeros to whole panels.
struct HeadRows {
    len: usize,
    width: usize,
    numbers: Vec<f32>,
}

impl HeadRows {
    fn zeros(len: usize, width: usize) -> Self {
        Self { len, width, numbers: vec![0f32; len * width] }
    }

    fn of_head(all: &[f32], start: usize, len: usize, head: usize, heads: usize, head_dim: usize) -> Self {
        let mut this = Self::zeros(len, head_dim.next_multiple_of(LANES));
        let stored = all[start * heads * head_dim..].chunks_exact(heads * head_dim);
        for (to, from) in this.numbers.chunks_mut(this.width).zip(stored) {
            to[..head_dim].copy_from_slice(&from[head * head_dim..][..head_dim]);
        }
        this
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.width..][..self.width]
    }

    /// With a column for each row, as many as fill whole panels.
    fn transposed(&self) -> Self {
        let mut this = Self::zeros(self.width, self.len.next_multiple_of(LANES));
        for (row, numbers) in self.numbers.chunks(self.width).enumerate() {
            numbers.iter().enumerate().for_each(|(column, number)| this.numbers[column * this.width + row] = *number);
        }
        this
    }

    /// The product with the first rows of `right`, as many as there are `steps`, added to `sums` from its row `to` on.
    fn times(&self, right: &Self, steps: usize, sums: &mut Self, to: usize, isa: Isa) {
        let product = PanelProduct {
            factors: &self.numbers,
            factor_stride: self.width,
            rows: self.len,
            panels: Panels::Beside(sums.width / LANES, &[&right.numbers]),
            steps,
            panel_stride: right.width,
        };
        let width = sums.width;
        product.add_to(&mut sums.numbers[to * width..], width, isa);
    }
}

/// One query head with its key/value head in one sequence.
struct HeadAttention<'a> {
    scoring: Scoring<'a>,
    sink: Option<f32>,
    /// What scores lose with each token between query and key.
    fall: Option<f32>,
    queries: HeadRows,
    keys: HeadRows,
    values: HeadRows,
    out: HeadRows,
    gradient: HeadRows,
    isa: Isa,
}

impl HeadAttention<'_> {
    fn backward(&self) -> [HeadRows; 3] {
        let (len, width) = (self.queries.len, self.queries.width);
        let [mut grad_queries, mut grad_keys, mut grad_values] = [(); 3].map(|()| HeadRows::zeros(len, width));
        let (keys, values) = (self.keys.transposed(), self.values.transposed());
        for first in (0..len).step_by(TILE_QUERIES) {
            let rows = TILE_QUERIES.min(len - first);
            let seen = first + rows;
            let tile = |of: &HeadRows| HeadRows {
                len: rows,
                width,
                numbers: of.numbers[first * width..seen * width].to_vec(),
            };
            let (queries, gradient) = (tile(&self.queries), tile(&self.gradient));
            let columns = seen.next_multiple_of(LANES);
            let mut weights = HeadRows::zeros(rows, columns);
            queries.times(&keys, width, &mut weights, 0, self.isa);
            // Of the values each row takes the products with its gradient.
            let mut slopes = HeadRows::zeros(rows, columns);
            gradient.times(&values, width, &mut slopes, 0, self.isa);
            for row in 0..rows {
                let at = row * columns..(row + 1) * columns;
                let (query, window) = (first + row, self.scoring.window.unwrap_or(usize::MAX));
                let row = QueryRow {
                    scoring: self.scoring,
                    fall: self.fall,
                    sink: self.sink,
                    seen: (query + 1).saturating_sub(window)..query + 1,
                    out: self.out.row(query),
                    gradient: gradient.row(row),
                };
                let (weights, slopes) = (&mut weights.numbers[at.clone()], &mut slopes.numbers[at]);
                weigh_row(&row, weights, slopes, self.isa);
            }
            slopes.times(&self.keys, seen, &mut grad_queries, first, self.isa);
            let back = |of: &HeadRows| HeadRows { len: seen, ..of.transposed() };
            back(&slopes).times(&queries, rows, &mut grad_keys, 0, self.isa);
            back(&weights).times(&gradient, rows, &mut grad_values, 0, self.isa);
        }
        [grad_queries, grad_keys, grad_values]
    }
}

/// One query of a head.
pub struct QueryRow<'a> {
    scoring: Scoring<'a>,
    fall: Option<f32>,
    sink: Option<f32>,
    /// The keys it attends to.
    seen: Range<usize>,
    /// What it makes of the values, and the gradient of that; whole lanes.
    out: &'a [f32],
    gradient: &'a [f32],
}

multiversion! {
    /// Makes products of a row with all keys its weights, and those of its gradient with all values the gradient by those
    /// products; whole lanes of them.
    pub fn weigh_row(row: &QueryRow<'_>, weights: &mut [f32], slopes: &mut [f32]) {
        let Scoring { scale, softcap, .. } = row.scoring;
        weights.iter_mut().for_each(|score| *score *= scale);
        if let Some(fall) = row.fall {
            let last = row.seen.end as f32 - 1.0;
            weights.iter_mut().zip(0u32..).for_each(|(score, key)| *score += fall * (key as f32 - last));
        }
        let mut bends = vec![1f32; if softcap.is_some() { weights.len() } else { 0 }];
        if let Some(cap) = softcap {
            for (score, bend) in weights.iter_mut().zip(&mut bends) {
                let bent = tanh(*score / cap);
                (*score, *bend) = (cap * bent, 1.0 - bent * bent);
            }
        }
        weights[..row.seen.start].fill(f32::NEG_INFINITY);
        weights[row.seen.end..].fill(f32::NEG_INFINITY);
        let (greatest, sum) = softmax_lanes(weights, &mut Prefetcher::idle());
        let sum = sum + row.sink.map_or(0.0, |sink| exp(sink - greatest));
        // Of the values all weights together take this much.
        let mut taken = [0f32; LANES];
        let (out, gradient) = (row.out.as_chunks::<LANES>().0, row.gradient.as_chunks::<LANES>().0);
        for (out, gradient) in out.iter().zip(gradient) {
            taken.iter_mut().zip(out.iter().zip(gradient)).for_each(|(taken, (out, gradient))| *taken += out * gradient);
        }
        let taken: f32 = taken.iter().sum();
        for (weight, slope) in weights.iter_mut().zip(&mut *slopes) {
            *weight /= sum;
            *slope = *weight * (*slope - taken) * scale;
        }
        slopes.iter_mut().zip(&bends).for_each(|(slope, bend)| *slope *= bend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::noise;

    /// Each gradient is what the result's weighted sum changes by.
    #[test]
    fn gradients_are_the_slopes_of_the_result() {
        let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 6 };
        let lens = [5, 1, 53];
        let rows: usize = lens.iter().sum();
        let sinks: Option<&[f32]> = Some(&[0.5, -1.0, 2.0, 0.0]);
        let cases = [
            (None, None, None, None),
            (Some(1.5), None, None, None),
            (None, Some(3), sinks, None),
            (Some(2.0), Some(20), None, Some(0.5)),
            (None, None, sinks, None),
            (None, None, None, Some(1.0)),
        ];
        for (softcap, window, sinks, alibi) in cases {
            let scoring = Scoring { scale: 0.7, softcap, window, sinks, alibi };
            let numbers = [noise(rows * 24, 1, 1.0), noise(rows * 12, 2, 1.0), noise(rows * 12, 3, 1.0)];
            let weights = noise(rows * 24, 4, 1.0);
            for isa in Isa::available() {
                let of = |numbers: &[Vec<f32>; 3]| {
                    let numbers = numbers.each_ref().map(Vec::as_slice);
                    forward(PackedSequences { lens: &lens, heads, scoring }, numbers, isa)
                };
                let sequences = PackedSequences { lens: &lens, heads, scoring };
                let gradients =
                    backward(sequences, numbers.each_ref().map(Vec::as_slice), &of(&numbers), &weights, isa);
                let loss = |numbers: &[Vec<f32>; 3]| -> f64 {
                    of(numbers).iter().zip(&weights).map(|(y, weight)| f64::from(*y) * f64::from(*weight)).sum()
                };
                for (which, gradient) in gradients.iter().enumerate() {
                    for i in (0..gradient.len()).step_by(11) {
                        let moved = |by: f32| {
                            let mut moved = numbers.clone();
                            moved[which][i] += by;
                            loss(&moved)
                        };
                        let difference = (moved(0.02) - moved(-0.02)) / 0.04;
                        assert!(
                            (difference - f64::from(gradient[i])).abs() < 2e-3,
                            "{which} {i}: {difference} {}",
                            gradient[i]
                        );
                    }
                }
            }
        }
    }
}
