//! Tiles of attention: rows of a sequence with the query heads of one KV head.

#![allow(unsafe_code, reason = "blocks of a cache that other threads write to")]

use std::ops::Range;

use smallvec::SmallVec;

use super::{
    band::QueryBand,
    heads::{BLOCK_TOKENS, Heads},
    kv_blocks::KvBlocks,
    kv_dtype::KvElement,
    scoring::{AttentionScoring, slope},
    scratch::AttentionScratch,
    softmax::{PartialAttention, SoftmaxState, softmax},
};
use crate::kernels::{
    Isa,
    elementwise::math::exp,
    layout::panels::{Accumulators, LANES, PanelElement, PanelProduct, Panels},
    memory::prefetch::Prefetcher,
};

/// Keys of a part, whose softmax is computed at a time. Parts begin at multiples of it, whatever the chunks of a prompt
/// are, and are merged in order, so that bits depend on neither.
pub const PART_TOKENS: usize = PART_BLOCKS * BLOCK_TOKENS;
const PART_BLOCKS: usize = 16;

/// The keys and values of a part.
pub struct KvPart<'a, T> {
    /// Index of the first block.
    pub first: usize,
    /// The keys of each block.
    pub keys: Slices<'a, T>,
    /// The values of each block, with the elements behind them that the last panel reads.
    pub values: Slices<'a, T>,
}

/// A slice of each block.
pub type Slices<'a, T> = SmallVec<[&'a [T]; PART_BLOCKS]>;

impl<T> KvPart<'_, T> {
    /// The number of keys, unused places of the last block included.
    pub fn tokens(&self) -> usize {
        self.keys.len() * BLOCK_TOKENS
    }
}

/// A type of keys and values with its way to attend.
pub trait AttentionElement: KvElement {
    /// The cost of a query and [`LANES`] keys beside products, in units of work of the [`Prefetcher`].
    const WORK: usize;

    /// Sets `work.weights` to the scores of `work.queries` and these keys.
    fn score(
        tile: &AttentionTile<'_, Self>,
        cached: &KvPart<'_, Self>,
        ahead: &mut Prefetcher<'_>,
        work: &mut AttentionScratch,
    );

    /// Adds these values times `work.weights` to the values of `work.part`, which are zero.
    fn add_values(
        tile: &AttentionTile<'_, Self>,
        cached: &KvPart<'_, Self>,
        ahead: &mut Prefetcher<'_>,
        work: &mut AttentionScratch,
    );
}

/// A band with the query heads that share a KV head. Each key and value is read once for all of them.
pub struct AttentionTile<'a, T> {
    pub heads: Heads,
    pub scoring: AttentionScoring<'a>,
    pub kv_head: usize,
    pub band: QueryBand<'a>,
    /// The queries of all rows, `[rows, num_heads * head_dim]`.
    pub queries: &'a [f32],
    pub blocks: KvBlocks<'a, T>,
    pub isa: Isa,
}

/// Attention weights as factors of values.
pub struct ValueWeights<'a, T: PanelElement> {
    /// Row `r` begins at `r * stride`.
    pub factors: &'a [T::Factor],
    pub stride: usize,
    pub rows: usize,
    /// Factors for each block.
    pub steps: usize,
}

impl<T: AttentionElement> AttentionTile<'_, T> {
    /// Indices of the parts that any row attends to.
    pub fn parts(&self) -> Range<usize> {
        let QueryBand { first_context, rows, .. } = self.band;
        self.seen(0, 0, usize::MAX).start / PART_TOKENS..(first_context + rows - 1).div_ceil(PART_TOKENS)
    }

    fn cached(&self, blocks: Range<usize>) -> KvPart<'_, T> {
        let (mut keys, mut values, first) = (Slices::new(), Slices::new(), blocks.start);
        for block in &self.band.blocks[blocks] {
            // SAFETY: a band has the blocks that its sequence reads, which is one of the view's.
            let (of_keys, of_values) = unsafe { self.blocks.get(*block as usize, self.kv_head) };
            keys.push(of_keys);
            values.push(of_values);
        }
        KvPart { first, keys, values }
    }

    /// The keys that a row attends to, as indices into the `len` keys from position `start` on.
    pub fn seen(&self, row: usize, start: usize, len: usize) -> Range<usize> {
        let context = self.band.first_context + row;
        let first = context.saturating_sub(self.scoring.window.unwrap_or(usize::MAX));
        let end = context.saturating_sub(start).min(len);
        first.saturating_sub(start).min(end)..end
    }

    /// Indices of the blocks of a part that any row attends to.
    fn blocks_of(&self, part: usize) -> Range<usize> {
        let from = self.seen(0, part * PART_TOKENS, PART_TOKENS).start;
        let to = self.seen(self.band.rows - 1, part * PART_TOKENS, PART_TOKENS).end;
        let first = part * PART_BLOCKS;
        first + from / BLOCK_TOKENS..first + to.div_ceil(BLOCK_TOKENS)
    }

    /// The result for all rows, `[rows, group, head_dim]`. Prefetches the first keys of the `next` tile.
    pub fn attend<'a>(&self, next: Option<Self>, work: &'a mut AttentionScratch) -> &'a [f32] {
        let parts = self.parts();
        let first = next.as_ref().map(|next| next.parts().start);
        work.whole.clear();
        for part in parts.clone() {
            let ahead = if part + 1 < parts.end { Some((self, part + 1)) } else { next.as_ref().zip(first) };
            self.attend_part(part, ahead, work);
            work.whole.merge(&work.part, self.isa);
        }
        self.finish(work)
    }

    /// Attends to one part. Prefetches the part of a tile that comes next.
    pub fn attend_part(&self, part: usize, ahead: Option<(&Self, usize)>, work: &mut AttentionScratch) {
        let blocks = self.blocks_of(part);
        let (start, width) = (blocks.start * BLOCK_TOKENS, blocks.len() * BLOCK_TOKENS);
        let cached = self.cached(blocks);
        self.take_queries(&mut work.queries);
        let of_products = 2 * self.heads.head_dim * LANES / T::STEP_LEN;
        let all_work = self.band.rows * self.heads.group() * cached.keys.len() * (of_products + T::WORK);
        let mut ahead = match ahead {
            Some((tile, part)) if tile.band.first => {
                tile.blocks.prefetcher(&tile.band.blocks[tile.blocks_of(part)], tile.kv_head, all_work)
            }
            _ => Prefetcher::idle(),
        };
        T::score(self, &cached, &mut ahead, work);
        let AttentionScratch { weights, part: PartialAttention { softmaxes, values }, .. } = work;
        softmaxes.clear();
        softmaxes.extend(weights.chunks_exact_mut(width).enumerate().map(|(query, scores)| {
            let seen = self.seen(query / self.heads.group(), start, width);
            if let Some(alibi) = self.scoring.alibi {
                self.add_biases(query, &mut scores[seen.clone()], start + seen.start, alibi);
            }
            softmax(scores, seen, self.scoring.softcap, &mut ahead, self.isa)
        }));
        values.clear();
        values.resize(softmaxes.len() * self.heads.padded_dim(), 0.0);
        T::add_values(self, &cached, &mut ahead, work);
    }

    /// Copies the queries of the tile, times the scale.
    fn take_queries(&self, queries: &mut Vec<f32>) {
        let Heads { num_heads, head_dim, .. } = self.heads;
        let group_len = self.heads.group() * head_dim;
        queries.clear();
        for row in self.queries.chunks(num_heads * head_dim).skip(self.band.start).take(self.band.rows) {
            let row = &row[self.kv_head * group_len..][..group_len];
            queries.extend(row.iter().map(|query| query * self.scoring.scale));
        }
    }

    /// Writes the products of queries, given as rows of factors, and keys: `[queries, keys]`.
    pub fn multiply_keys(&self, keys: &[&[T]], factors: &[T::Factor], ahead: &mut Prefetcher<'_>, sums: &mut [T::Sum]) {
        let rows = self.band.rows * self.heads.group();
        let (steps, panels) = (factors.len() / rows, Panels::Apart(keys));
        let sums = Accumulators { sums, stride: keys.len() * BLOCK_TOKENS, add: false };
        PanelProduct { factors, factor_stride: steps, rows, panels, steps, panel_stride: T::STEP_LEN }
            .write(sums, ahead, self.isa);
    }

    /// Writes the weighted sums of the values of some blocks, or adds them if `add`: `[rows, padded_dim]`.
    pub fn multiply_values(
        &self,
        values: &[&[T]],
        ValueWeights { factors, stride, rows, steps }: ValueWeights<'_, T>,
        ahead: &mut Prefetcher<'_>,
        (sums, add): (&mut [T::Sum], bool),
    ) {
        let (dim, panel_stride) = (self.heads.padded_dim(), self.heads.head_dim * T::STEP_LEN / LANES);
        let (panels, sums) = (Panels::Beside(dim / LANES, values), Accumulators { sums, stride: dim, add });
        PanelProduct { factors, factor_stride: stride, rows, panels, steps, panel_stride }.write(sums, ahead, self.isa);
    }

    /// Adds linear biases to the scores of a query and the keys from position `start` on.
    fn add_biases(&self, query: usize, scores: &mut [f32], start: usize, alibi: f32) {
        let Heads { num_heads, .. } = self.heads;
        let (row, head) = (query / self.heads.group(), query % self.heads.group());
        let slope = alibi * slope(self.kv_head * self.heads.group() + head, num_heads);
        let own = self.band.first_context + row - 1;
        for (score, position) in scores.iter_mut().zip(start..) {
            *score -= slope * (own - position) as f32;
        }
    }

    /// The result of all parts together, `[rows, group, head_dim]`.
    pub fn finish<'a>(&self, AttentionScratch { whole, out, .. }: &'a mut AttentionScratch) -> &'a [f32] {
        let Heads { head_dim, .. } = self.heads;
        out.clear();
        let first_head = self.kv_head * self.heads.group();
        let values = whole.values.chunks_exact(self.heads.padded_dim());
        for (query, (SoftmaxState { max, sum }, values)) in whole.softmaxes.iter().zip(values).enumerate() {
            let head = first_head + query % self.heads.group();
            let sum = sum + self.scoring.sinks.map_or(0.0, |sinks| exp(sinks[head] - max));
            out.extend(values[..head_dim].iter().map(|value| value / sum));
        }
        out
    }
}
