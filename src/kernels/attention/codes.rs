use std::ops::Range;

use super::tile::{Ahead, Attended, BLOCKS_AT_ONCE, PART_TOKENS, Tile, Weights, Work, zero};
use crate::kernels::{
    bytes::{SCALES_LEN, Scale, key_scales, scale_scores, value_scales, weigh_scales},
    paged_cache::BLOCK_TOKENS,
    pairs::{greatest_factor, round_to_factors, scale_sums},
    softmax::Part,
};

/// What a thread computes in.
#[derive(Default)]
pub struct Codes {
    /// Queries, `[queries, head_dim / 2]`, or weights times the scales of values, `[queries, keys / 2]`, in steps of their own.
    factors: Vec<[i16; 2]>,
    /// `[queries]`.
    steps: Vec<f32>,
    /// Those of keys or values.
    scales: Vec<Scale>,
    /// Dot products, `[queries, keys]`, or values, `[queries, padded_dim]`.
    sums: Vec<i32>,
}

/// Queries and weights are rounded to 16 bits, so that their products with codes are those of integers.
impl Attended for i8 {
    fn score(tile: &Tile<'_, i8>, blocks: Range<usize>, Work { queries, weights, codes, .. }: &mut Work) {
        let Codes { factors, steps, scales, sums } = codes;
        let head_dim = tile.heads.head_dim;
        let (rows, pairs, width) = (queries.len() / head_dim, head_dim.div_ceil(2), blocks.len() * BLOCK_TOKENS);
        let greatest_factor = greatest_factor(2 * pairs);
        factors.resize(rows * pairs, [0; 2]);
        steps.clear();
        for (query, factors) in queries.chunks_exact(head_dim).zip(factors.chunks_exact_mut(pairs)) {
            let (factors, beyond) = factors.as_flattened_mut().split_at_mut(head_dim);
            steps.push(compiled_for!(tile.isa, round_to_factors(query, greatest_factor, factors)));
            beyond.fill(0);
        }
        zero(sums, rows * width);
        tile.multiply_keys(blocks.clone(), factors, sums);
        scales.clear();
        blocks.for_each(|block| scales.extend_from_slice(key_scales(tile.block(block).0)));
        weights.resize(rows * width, 0.0);
        let rows = weights.chunks_exact_mut(width).zip(sums.chunks_exact(width)).zip(steps);
        for ((weights, sums), step) in rows {
            compiled_for!(tile.isa, scale_scores(sums, *step, scales, weights));
        }
    }

    fn add_values(tile: &Tile<'_, i8>, blocks: Range<usize>, ahead: Option<&Ahead<'_, i8>>, work: &mut Work) {
        let Work { weights, part: Part { values, .. }, codes, .. } = work;
        let Codes { factors, steps, scales, sums } = codes;
        let (padded_dim, width) = (tile.heads.padded_dim(), blocks.len() * BLOCK_TOKENS);
        let (rows, greatest_factor) = (weights.len() / width, greatest_factor(PART_TOKENS));
        scales.clear();
        blocks.clone().for_each(|block| scales.extend_from_slice(value_scales(tile.block(block).1)));
        factors.resize(rows * width / 2, [0; 2]);
        steps.clear();
        let each = weights.chunks_exact_mut(width).zip(factors.chunks_exact_mut(width / 2)).enumerate();
        for (query, (weights, factors)) in each {
            compiled_for!(tile.isa, weigh_scales(weights, scales));
            // What a row does not see may be anything.
            let seen = tile.seen(query / tile.heads.group(), blocks.start * BLOCK_TOKENS, width);
            weights[..seen.start].fill(0.0);
            weights[seen.end..].fill(0.0);
            let factors = factors.as_flattened_mut();
            steps.push(compiled_for!(tile.isa, round_to_factors(weights, greatest_factor, factors)));
        }
        zero(sums, rows * padded_dim);
        for first in blocks.clone().step_by(BLOCKS_AT_ONCE) {
            let now = first..blocks.end.min(first + BLOCKS_AT_ONCE);
            let keys = ahead.map(|ahead| ahead.keys(&blocks, now.clone())).unwrap_or_default();
            let factors = &factors[(first - blocks.start) * BLOCK_TOKENS / 2..];
            let weights = Weights { factors, stride: width / 2, rows, steps: BLOCK_TOKENS / 2 };
            tile.multiply_values(now, SCALES_LEN, weights, sums, &keys);
        }
        let rows = values.chunks_exact_mut(padded_dim).zip(sums.chunks_exact(padded_dim)).zip(steps);
        for ((values, sums), step) in rows {
            compiled_for!(tile.isa, scale_sums(sums, *step, values));
        }
    }
}
