use std::{mem::take, ops::Range};

use super::tile::{Ahead, Attended, BLOCKS_AT_ONCE, Tile, Weights, Work, zero};
use crate::kernels::{paged_cache::BLOCK_TOKENS, panels::Element, softmax::Part};

impl<T: Element> Attended for T {
    fn score(tile: &Tile<'_, T>, blocks: Range<usize>, Work { queries, weights, .. }: &mut Work) {
        zero(weights, queries.len() / tile.heads.head_dim * blocks.len() * BLOCK_TOKENS);
        tile.multiply_keys(blocks, queries, weights);
    }

    fn add_values(tile: &Tile<'_, T>, blocks: Range<usize>, ahead: Option<&Ahead<'_, T>>, work: &mut Work) {
        let Work { weights, part: Part { values, .. }, .. } = work;
        let (group, head_dim, width) = (tile.heads.group(), tile.heads.head_dim, blocks.len() * BLOCK_TOKENS);
        // What a row does not see may be anything, even no number: a weight of zero is not enough.
        let is_whole = |block: &usize| {
            let all = 0..BLOCK_TOKENS;
            [0, tile.band.rows - 1].iter().all(|row| tile.seen(*row, block * BLOCK_TOKENS, BLOCK_TOKENS) == all)
        };
        let mut block = blocks.start;
        while block < blocks.end {
            let whole = (block..blocks.end).take(BLOCKS_AT_ONCE).take_while(is_whole).count();
            let now = block..block + whole.max(1);
            let mut keys = ahead.map(|ahead| ahead.keys(&blocks, now.clone())).unwrap_or_default();
            let some = |row: usize, rows: usize, seen: Range<usize>| {
                let first = row * group * width + (now.start - blocks.start) * BLOCK_TOKENS + seen.start;
                let factors = &weights[first..];
                (seen.start * head_dim, Weights { factors, stride: width, rows: rows * group, steps: seen.len() })
            };
            block = now.end;
            if whole > 0 {
                let (skipped, weights) = some(0, tile.band.rows, 0..BLOCK_TOKENS);
                tile.multiply_values(now, skipped, weights, values, &keys);
                continue;
            }
            for row in 0..tile.band.rows {
                let seen = tile.seen(row, now.start * BLOCK_TOKENS, BLOCK_TOKENS);
                if !seen.is_empty() {
                    let (skipped, weights) = some(row, 1, seen);
                    let sums = &mut values[row * group * tile.heads.padded_dim()..];
                    tile.multiply_values(now.clone(), skipped, weights, sums, &take(&mut keys));
                }
            }
        }
    }
}
