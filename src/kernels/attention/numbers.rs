use std::ops::Range;

use smallvec::SmallVec;

use super::{
    PANELS,
    tile::{Ahead, Attended, BLOCKS_AT_ONCE, Tile, Work, zero},
};
use crate::kernels::{
    paged_cache::{BLOCK_TOKENS, Heads},
    panels::{Element, LANES, Product},
    softmax::Part,
};

impl<T: Element> Attended for T {
    fn score(tile: &Tile<'_, T>, blocks: Range<usize>, Work { queries, weights, .. }: &mut Work) {
        zero(weights, queries.len() / tile.heads.head_dim * blocks.len() * BLOCK_TOKENS);
        tile.multiply_keys(blocks, queries, weights);
    }

    fn add_values(tile: &Tile<'_, T>, blocks: Range<usize>, ahead: Option<&Ahead<'_, T>>, work: &mut Work) {
        let Work { weights, part: Part { values, .. }, .. } = work;
        let width = blocks.len() * BLOCK_TOKENS;
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
            let weights = (&weights[(block - blocks.start) * BLOCK_TOKENS..], width);
            block = now.end;
            if whole > 0 {
                add_some(tile, now, (0, tile.band.rows), 0..BLOCK_TOKENS, weights, values, &keys);
                continue;
            }
            for row in 0..tile.band.rows {
                let seen = tile.seen(row, now.start * BLOCK_TOKENS, BLOCK_TOKENS);
                add_some(tile, now.clone(), (row, 1), seen, weights, values, &std::mem::take(&mut keys));
            }
        }
    }
}

/// For some rows adds the values that these keys have in each of some blocks, times their weights.
fn add_some<T: Element>(
    tile: &Tile<'_, T>,
    blocks: Range<usize>,
    (row, rows): (usize, usize),
    keys: Range<usize>,
    (weights, weight_stride): (&[f32], usize),
    sums: &mut [f32],
    ahead: &[&[T]],
) {
    if keys.is_empty() {
        return;
    }
    let (group, Heads { head_dim, .. }, padded_dim) = (tile.heads.group(), tile.heads, tile.heads.padded_dim());
    let pieces = blocks.len();
    let mut panels = SmallVec::<[&[T]; PANELS]>::new();
    for block in blocks {
        let values = &tile.block(block).1[keys.start * head_dim..];
        (0..head_dim).step_by(LANES).for_each(|at| panels.push(&values[at..]));
    }
    let product = Product {
        factors: &weights[row * group * weight_stride + keys.start..],
        factor_stride: weight_stride,
        rows: rows * group,
        pieces,
        steps: keys.len(),
        panels: &panels,
        panel_stride: head_dim,
        ahead,
    };
    product.add_to(&mut sums[row * group * padded_dim..], padded_dim, tile.isa);
}
