//! Attention to keys and values of 8 bits.

use super::{
    heads::BLOCK_TOKENS,
    int16::{greatest_factor, round_to_factors, scale_sums},
    kv_int8::{SCALES_LEN, key_scales, scale_scores, value_scales, weigh_scales},
    scratch::{AttentionScratch, Int8Scratch},
    softmax::{PartialAttention, SOFTMAX_WORK},
    tile::{AttentionElement, AttentionTile, KvPart, PART_TOKENS, Slices, ValueWeights},
};
use crate::kernels::memory::prefetch::Prefetcher;

/// The costs of scaling [`LANES`](crate::kernels::layout::panels::LANES) sums, and of rounding as many weights, in
/// units of work of the [`Prefetcher`].
const SCALING_WORK: usize = 4;
const ROUNDING_WORK: usize = 12;

/// Queries and weights are rounded to 16 bits, so that their products with codes are exact integers.
impl AttentionElement for i8 {
    const WORK: usize = SCALING_WORK + SOFTMAX_WORK + ROUNDING_WORK;

    fn score(
        tile: &AttentionTile<'_, i8>,
        cached: &KvPart<'_, i8>,
        ahead: &mut Prefetcher<'_>,
        work: &mut AttentionScratch,
    ) {
        let AttentionScratch { queries, weights, int8: Int8Scratch { factors, steps, scales, sums }, .. } = work;
        let head_dim = tile.heads.head_dim;
        let (rows, pairs, width) = (queries.len() / head_dim, head_dim.div_ceil(2), cached.tokens());
        let greatest_factor = greatest_factor(2 * pairs);
        factors.resize(rows * pairs, [0; 2]);
        steps.clear();
        for (query, factors) in queries.chunks_exact(head_dim).zip(factors.chunks_exact_mut(pairs)) {
            let (factors, beyond) = factors.as_flattened_mut().split_at_mut(head_dim);
            steps.push(round_to_factors(query, greatest_factor, factors, tile.isa));
            beyond.fill(0);
        }
        sums.resize(rows * width, 0);
        tile.multiply_keys(&cached.keys, factors, ahead, sums);
        scales.clear();
        scales.extend(cached.keys.iter().map(|keys| key_scales(keys)));
        weights.resize(rows * width, 0.0);
        let rows = weights.chunks_exact_mut(width).zip(sums.chunks_exact(width)).zip(steps);
        for ((weights, sums), step) in rows {
            scale_scores(sums, *step, scales.as_flattened(), weights, tile.isa);
            ahead.step(SCALING_WORK * cached.keys.len());
        }
    }

    fn add_values(
        tile: &AttentionTile<'_, i8>,
        cached: &KvPart<'_, i8>,
        ahead: &mut Prefetcher<'_>,
        work: &mut AttentionScratch,
    ) {
        let AttentionScratch { weights, part: PartialAttention { values, .. }, int8, .. } = work;
        let Int8Scratch { factors, steps, scales, sums } = int8;
        let (padded_dim, width) = (tile.heads.padded_dim(), cached.tokens());
        let (rows, greatest_factor) = (weights.len() / width, greatest_factor(PART_TOKENS));
        scales.clear();
        scales.extend(cached.values.iter().map(|values| value_scales(values)));
        factors.resize(rows * width / 2, [0; 2]);
        steps.clear();
        let each = weights.chunks_exact_mut(width).zip(factors.chunks_exact_mut(width / 2)).enumerate();
        for (query, (weights, factors)) in each {
            weigh_scales(weights, scales.as_flattened(), tile.isa);
            // Scores that a row does not see are unspecified.
            let seen = tile.seen(query / tile.heads.group(), cached.first * BLOCK_TOKENS, width);
            weights[..seen.start].fill(0.0);
            weights[seen.end..].fill(0.0);
            let factors = factors.as_flattened_mut();
            steps.push(round_to_factors(weights, greatest_factor, factors, tile.isa));
            ahead.step(ROUNDING_WORK * cached.keys.len());
        }
        sums.resize(rows * padded_dim, 0);
        let stored: Slices<'_, i8> = cached.values.iter().map(|values| &values[SCALES_LEN..]).collect();
        let weights = ValueWeights { factors, stride: width / 2, rows, steps: BLOCK_TOKENS / 2 };
        tile.multiply_values(&stored, weights, ahead, (sums, false));
        let rows = values.chunks_exact_mut(padded_dim).zip(sums.chunks_exact(padded_dim)).zip(steps);
        for ((values, sums), step) in rows {
            scale_sums(sums, *step, values, tile.isa);
        }
    }
}
