//! Attention to floating-point keys and values.

use std::ops::Range;

use super::{
    heads::BLOCK_TOKENS,
    scratch::AttentionScratch,
    softmax::{PartialAttention, SOFTMAX_WORK},
    tile::{AttentionElement, AttentionTile, KvPart, ValueWeights},
};
use crate::kernels::{layout::element::Element, memory::prefetch::Prefetcher};

/// Blocks whose values are multiplied with the weights of all queries at a time.
const BLOCKS_AT_ONCE: usize = 4;

impl<T: Element> AttentionElement for T {
    const WORK: usize = SOFTMAX_WORK;

    fn score(
        tile: &AttentionTile<'_, T>,
        cached: &KvPart<'_, T>,
        ahead: &mut Prefetcher<'_>,
        AttentionScratch { queries, weights, .. }: &mut AttentionScratch,
    ) {
        weights.resize(queries.len() / tile.heads.head_dim * cached.tokens(), 0.0);
        tile.multiply_keys(&cached.keys, queries, ahead, weights);
    }

    fn add_values(
        tile: &AttentionTile<'_, T>,
        cached: &KvPart<'_, T>,
        ahead: &mut Prefetcher<'_>,
        work: &mut AttentionScratch,
    ) {
        let AttentionScratch { weights, part: PartialAttention { values, .. }, .. } = work;
        let (group, head_dim, width) = (tile.heads.group(), tile.heads.head_dim, cached.tokens());
        let seen = |row: usize, block: usize| tile.seen(row, (cached.first + block) * BLOCK_TOKENS, BLOCK_TOKENS);
        // Values that a row does not see may be NaN, so a weight of zero is not enough.
        let is_whole =
            |block: &usize| [0, tile.band.rows - 1].iter().all(|row| seen(*row, *block) == (0..BLOCK_TOKENS));
        let some = |row: usize, rows: usize, block: usize, seen: Range<usize>| {
            let factors = &weights[row * group * width + block * BLOCK_TOKENS + seen.start..];
            ValueWeights { factors, stride: width, rows: rows * group, steps: seen.len() }
        };
        let mut block = 0;
        while block < cached.values.len() {
            let whole = (block..cached.values.len()).take(BLOCKS_AT_ONCE).take_while(is_whole).count();
            if whole > 0 {
                let weights = some(0, tile.band.rows, block, 0..BLOCK_TOKENS);
                tile.multiply_values(&cached.values[block..block + whole], weights, ahead, (values, true));
                block += whole;
                continue;
            }
            for row in 0..tile.band.rows {
                let seen = seen(row, block);
                if !seen.is_empty() {
                    let sums = &mut values[row * group * tile.heads.padded_dim()..];
                    let of_seen = &cached.values[block][seen.start * head_dim..];
                    tile.multiply_values(&[of_seen], some(row, 1, block, seen), ahead, (sums, true));
                }
            }
            block += 1;
        }
    }
}
