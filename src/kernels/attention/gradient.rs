//! Attention within whole sequences, for training, and its gradients. The backward pass computes scores anew, a few
//! queries at a time ([FlashAttention](https://arxiv.org/abs/2205.14135), algorithm 4).

use std::ops::Range;

use super::{
    attend::attend,
    heads::{BLOCK_TOKENS, Heads},
    kv_dtype::KvDtype,
    paged_cache::PagedCache,
    scoring::{AttentionScoring, slope},
    sequence::PagedSequence,
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

/// Queries of a tile.
const TILE_QUERIES: usize = 48;
/// Rows whose gradients a thread sums at a time.
const SUMMED_ROWS: usize = 32;

/// Sequences of these lengths, whose rows follow each other without padding.
#[derive(Clone, Copy)]
pub struct PackedSequences<'a> {
    pub lens: &'a [usize],
    pub heads: Heads,
    pub scoring: AttentionScoring<'a>,
}

/// Causal attention within each sequence. Queries and the result are `[rows, num_heads * head_dim]`, keys and values
/// `[rows, num_kv_heads * head_dim]`. `None` if the memory for a copy of keys and values cannot be reserved.
pub fn forward(sequences: PackedSequences<'_>, [queries, keys, values]: [&[f32]; 3], isa: Isa) -> Option<Vec<f32>> {
    let PackedSequences { lens, heads, scoring } = sequences;
    let blocks: usize = lens.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).sum();
    let ids: Vec<u32> = (0..blocks as u32).collect();
    let mut cache = PagedCache::new(heads, blocks, KvDtype::F32)?;
    let (mut in_blocks, mut first) = (Vec::new(), 0);
    for len in lens {
        let blocks = len.div_ceil(BLOCK_TOKENS);
        in_blocks.push(PagedSequence { rows: *len, context_len: *len, blocks: &ids[first..first + blocks] });
        first += blocks;
    }
    cache.store(&in_blocks, keys, values, isa);
    Some(attend(cache.view(&in_blocks), queries, scoring, isa))
}

/// The gradients with respect to queries, keys and values, from the result of [`forward`] and its gradient.
pub fn backward(
    sequences: PackedSequences<'_>,
    inputs @ [queries, keys, values]: [&[f32]; 3],
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
        let rows = |all: &[f32], head, count| HeadRows::of_head(all, (*start, *len), (head, count), heads.head_dim);
        HeadAttention {
            scoring,
            sink: scoring.sinks.map(|sinks| sinks[*head]),
            fall: scoring.alibi.map(|alibi| alibi * slope(*head, heads.num_heads)),
            queries: rows(queries, *head, heads.num_heads),
            keys: rows(keys, kv_head, heads.num_kv_heads),
            values: rows(values, kv_head, heads.num_kv_heads),
            out: rows(out, *head, heads.num_heads),
            gradient: rows(gradient, *head, heads.num_heads),
            isa,
        }
        .backward()
    });
    // The gradient of a KV head is the sum over the query heads that share it.
    let sums = |which: usize, shared: usize| {
        let (count, head_dim) = (heads.num_heads / shared, heads.head_dim);
        let width = count * head_dim;
        filled(inputs[which].len(), SUMMED_ROWS * width, |part, sums| {
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

/// The rows of one head in one sequence, padded with zeros to whole panels.
struct HeadRows {
    len: usize,
    width: usize,
    values: Vec<f32>,
}

impl HeadRows {
    fn zeros(len: usize, width: usize) -> Self {
        Self { len, width, values: vec![0f32; len * width] }
    }

    /// The rows `start..start + len` of head `head` out of `heads` in `all`, `[rows, heads * head_dim]`.
    fn of_head(all: &[f32], (start, len): (usize, usize), (head, heads): (usize, usize), head_dim: usize) -> Self {
        let mut this = Self::zeros(len, head_dim.next_multiple_of(LANES));
        let stored = all[start * heads * head_dim..].chunks_exact(heads * head_dim);
        for (to, from) in this.values.chunks_mut(this.width).zip(stored) {
            to[..head_dim].copy_from_slice(&from[head * head_dim..][..head_dim]);
        }
        this
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// The transpose: a column for each row, padded to whole panels.
    fn transposed(&self) -> Self {
        let mut this = Self::zeros(self.width, self.len.next_multiple_of(LANES));
        for (row, values) in self.values.chunks(self.width).enumerate() {
            values.iter().enumerate().for_each(|(column, value)| this.values[column * this.width + row] = *value);
        }
        this
    }

    /// Adds the product with the first `steps` rows of `right` to `sums`, from row `to` of `sums` on.
    fn multiply(&self, right: &Self, steps: usize, (sums, to): (&mut Self, usize), isa: Isa) {
        let product = PanelProduct {
            factors: &self.values,
            factor_stride: self.width,
            rows: self.len,
            panels: Panels::Beside(sums.width / LANES, &[&right.values]),
            steps,
            panel_stride: right.width,
        };
        let width = sums.width;
        product.add_to(&mut sums.values[to * width..], width, isa);
    }
}

/// A query head with its KV head in one sequence.
struct HeadAttention<'a> {
    scoring: AttentionScoring<'a>,
    sink: Option<f32>,
    /// The decrease of scores with each token between query and key.
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
            let tile =
                |of: &HeadRows| HeadRows { len: rows, width, values: of.values[first * width..seen * width].to_vec() };
            let (queries, gradient) = (tile(&self.queries), tile(&self.gradient));
            let columns = seen.next_multiple_of(LANES);
            let mut weights = HeadRows::zeros(rows, columns);
            queries.multiply(&keys, width, (&mut weights, 0), self.isa);
            // Products of each row's gradient and the values.
            let mut slopes = HeadRows::zeros(rows, columns);
            gradient.multiply(&values, width, (&mut slopes, 0), self.isa);
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
                let (weights, slopes) = (&mut weights.values[at.clone()], &mut slopes.values[at]);
                weigh_row(&row, weights, slopes, self.isa);
            }
            slopes.multiply(&self.keys, seen, (&mut grad_queries, first), self.isa);
            let back = |of: &HeadRows| HeadRows { len: seen, ..of.transposed() };
            back(&slopes).multiply(&queries, rows, (&mut grad_keys, 0), self.isa);
            back(&weights).multiply(&gradient, rows, (&mut grad_values, 0), self.isa);
        }
        [grad_queries, grad_keys, grad_values]
    }
}

/// A query of a head.
pub struct QueryRow<'a> {
    scoring: AttentionScoring<'a>,
    fall: Option<f32>,
    sink: Option<f32>,
    /// The keys it attends to.
    seen: Range<usize>,
    /// The result, padded to whole panels.
    out: &'a [f32],
    /// The gradient of the result, padded alike.
    gradient: &'a [f32],
}

multiversion! {
    /// `weights` are the products of a query and all keys before, and the attention weights after. `slopes` are the
    /// products of the gradient and all values before, and the gradient with respect to the products of query and keys
    /// after.
    pub fn weigh_row(row: &QueryRow<'_>, weights: &mut [f32], slopes: &mut [f32]) {
        let AttentionScoring { scale, softcap, .. } = row.scoring;
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
        // The product of the result and its gradient.
        let mut taken = [0f32; LANES];
        let (out, gradient) = (row.out.as_chunks::<LANES>().0, row.gradient.as_chunks::<LANES>().0);
        for (out, gradient) in out.iter().zip(gradient) {
            let products = out.iter().zip(gradient).map(|(out, gradient)| out * gradient);
            taken.iter_mut().zip(products).for_each(|(taken, product)| *taken += product);
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
            let scoring = AttentionScoring { scale: 0.7, softcap, window, sinks, alibi };
            let inputs = [noise(rows * 24, 1, 1.0), noise(rows * 12, 2, 1.0), noise(rows * 12, 3, 1.0)];
            let weights = noise(rows * 24, 4, 1.0);
            for isa in Isa::available() {
                let of = |inputs: &[Vec<f32>; 3]| {
                    let inputs = inputs.each_ref().map(Vec::as_slice);
                    forward(PackedSequences { lens: &lens, heads, scoring }, inputs, isa).unwrap()
                };
                let sequences = PackedSequences { lens: &lens, heads, scoring };
                let gradients = backward(sequences, inputs.each_ref().map(Vec::as_slice), &of(&inputs), &weights, isa);
                let loss = |inputs: &[Vec<f32>; 3]| -> f64 {
                    of(inputs).iter().zip(&weights).map(|(y, weight)| f64::from(*y) * f64::from(*weight)).sum()
                };
                for (which, gradient) in gradients.iter().enumerate() {
                    for i in (0..gradient.len()).step_by(11) {
                        let moved = |by: f32| {
                            let mut moved = inputs.clone();
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
