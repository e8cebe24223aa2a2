//! Attention over a paged KV cache, computed in tiles ([FlashAttention](https://arxiv.org/abs/2205.14135)).

use std::mem::take;

use super::{
    band::bands, kv_blocks::CacheView, kv_dtype::with_kv_dtype, scoring::AttentionScoring, scratch::AttentionScratch,
    sequence::PagedSequence, tile::AttentionTile,
};
use crate::kernels::{
    Isa,
    threads::{
        current_num_threads, parallel,
        strips::{Strips, written_in_bands},
    },
};

/// Multiply-adds below which a second thread costs more than it saves.
const PARALLEL_WORK: usize = 1 << 16;
/// Tiles for each thread from which on threads share whole tiles, and not parts of tiles.
const TILES_EACH: usize = 8;

/// `softmax(scale * q Kᵀ) V` for each row and head. `queries` and the result are `[rows, num_heads * head_dim]`, with
/// the rows of the view's sequences one after another.
pub fn attend(cache: CacheView<'_>, queries: &[f32], scoring: AttentionScoring<'_>, isa: Isa) -> Vec<f32> {
    let (heads, sequences, blocks) = cache.into_parts();
    let seen = |sequence: &PagedSequence<'_>| sequence.context_len.min(scoring.window.unwrap_or(usize::MAX));
    let work: usize = sequences.iter().map(|sequence| sequence.rows * seen(sequence)).sum();
    let bands = bands(heads, sequences);
    let ends: Vec<usize> = bands.iter().map(|band| band.start + band.rows).collect();
    let strips = Strips { columns: heads.num_heads * heads.head_dim, width: heads.group() * heads.head_dim };
    let across = heads.num_kv_heads;
    let count = bands.len() * across;
    with_kv_dtype!(blocks, blocks => {
        let tile = |i: usize| {
            let (band, kv_head) = (bands[i / across], i % across);
            AttentionTile { heads, scoring, kv_head, band, queries, blocks, isa }
        };
        let parallel = work * heads.num_heads * heads.head_dim >= PARALLEL_WORK;
        if !parallel || count >= current_num_threads() * TILES_EACH {
            let at_once = if parallel { 1 } else { count.max(1) };
            return written_in_bands(&ends, strips, at_once, |i, strip| {
                let next = (i + 1 < count).then(|| tile(i + 1));
                AttentionScratch::with(|work| strip.write(tile(i).attend(next, work)));
            });
        }
        // Parts are in the order of memory: a block has the keys and values of all heads.
        let (mut all, mut firsts) = (Vec::new(), Vec::with_capacity(bands.len()));
        for tiles in (0..count).step_by(across) {
            firsts.push(all.len());
            all.extend(tile(tiles).parts().flat_map(|part| (tiles..tiles + across).map(move |i| (i, part))));
        }
        let parts = parallel::map(&all, |index, (i, part)| {
            let ahead = all.get(index + 1).map(|(i, part)| (tile(*i), *part));
            let ahead = ahead.as_ref().map(|(tile, part)| (tile, *part));
            AttentionScratch::with(|work| {
                tile(*i).attend_part(*part, ahead, work);
                take(&mut work.part)
            })
        });
        written_in_bands(&ends, strips, count, |i, strip| {
            let of_tile = parts[firsts[i / across] + i % across..].iter().step_by(across);
            AttentionScratch::with(|work| {
                work.whole.clear();
                of_tile.take(tile(i).parts().len()).for_each(|part| work.whole.merge(part, isa));
                strip.write(tile(i).finish(work));
            });
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{
        attention::{
            heads::{BLOCK_TOKENS, Heads},
            kv_dtype::KvDtype,
            paged_cache::PagedCache,
            scoring::slope,
        },
        layout::element::Element,
        noise,
    };

    const TYPES: [KvDtype; 4] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16, KvDtype::Int8];

    /// A sequence of `context_len` tokens, and a cache that holds it in blocks out of order among blocks of NaN.
    struct AttentionCase {
        heads: Heads,
        context_len: usize,
        blocks: Vec<u32>,
        queries: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
        cache: PagedCache,
    }

    impl AttentionCase {
        fn new(heads: Heads, context_len: usize, kv_dtype: KvDtype) -> Self {
            let count = context_len.div_ceil(BLOCK_TOKENS) as u32;
            let blocks: Vec<u32> = (0..count).map(|block| (count - 1 - block) * 2 + 1).collect();
            let width = heads.num_kv_heads * heads.head_dim;
            let all = 2 * count as usize * BLOCK_TOKENS;
            let mut cache = PagedCache::new(heads, all / BLOCK_TOKENS, kv_dtype).unwrap();
            let (nan, everywhere) = (vec![f32::NAN; all * width], (0..2 * count).collect::<Vec<_>>());
            cache.store(
                &[PagedSequence { rows: all, context_len: all, blocks: &everywhere }],
                &nan,
                &nan,
                Isa::detect(),
            );
            fn round<T: Element>(values: &[f32]) -> Vec<f32> {
                let mut rounded = vec![T::zeroed(); values.len()];
                T::round(values, &mut rounded, Isa::Scalar);
                rounded.into_iter().map(Element::to_f32).collect()
            }
            // The step is the 127th part of the greatest magnitude, rounded up to 16 bits.
            let coded = |values: &[f32]| -> Vec<f32> {
                let least = values.iter().fold(0f32, |greatest, value| greatest.max(value.abs())) / 127.0;
                let near = half::bf16::from_f32(least);
                let above = half::bf16::from_bits(near.to_bits() + 1);
                let scale = if near.to_f32() < least { above.to_f32() } else { near.to_f32() };
                values.iter().map(|value| (value * scale.recip()).round_ties_even() * scale).collect()
            };
            let rounded = |values: Vec<f32>| match kv_dtype {
                KvDtype::F32 => values,
                KvDtype::Int8 => values.chunks(heads.head_dim).flat_map(coded).collect(),
                KvDtype::F16 => round::<half::f16>(&values),
                KvDtype::Bf16 => round::<half::bf16>(&values),
            };
            let [keys, values] = [1, 2].map(|seed| noise(context_len * width, seed, 2.0));
            cache.store(
                &[PagedSequence { rows: context_len, context_len, blocks: &blocks }],
                &keys,
                &values,
                Isa::detect(),
            );
            let [keys, values] = [keys, values].map(rounded);
            let queries = noise(context_len * heads.num_heads * heads.head_dim, 3, 2.0);
            Self { heads, context_len, blocks, queries, keys, values, cache }
        }

        /// All rows, in chunks of these lengths.
        fn attend(&self, chunks: &[usize], scoring: AttentionScoring<'_>, isa: Isa) -> Vec<f32> {
            let width = self.heads.num_heads * self.heads.head_dim;
            let (mut out, mut start) = (Vec::new(), 0);
            for rows in chunks {
                let sequence = PagedSequence { rows: *rows, context_len: start + rows, blocks: &self.blocks };
                let range = start * width..(start + rows) * width;
                out.extend(attend(self.cache.view(&[sequence]), &self.queries[range], scoring, isa));
                start += rows;
            }
            assert_eq!(start, self.context_len);
            out
        }

        /// Attention of a row by the formula, in f64.
        fn naive(&self, row: usize, scoring: AttentionScoring) -> Vec<f64> {
            let first = (row + 1).saturating_sub(scoring.window.unwrap_or(usize::MAX));
            let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
            let of = |all: &[f32], position: usize, head: usize, i: usize| {
                f64::from(all[(position * num_kv_heads + head / self.heads.group()) * head_dim + i])
            };
            let mut out = Vec::new();
            for head in 0..num_heads {
                let query = &self.queries[(row * num_heads + head) * head_dim..][..head_dim];
                let score = |position: usize| -> f64 {
                    let product = |i| f64::from(query[i]) * of(&self.keys, position, head, i);
                    let score = (0..head_dim).map(product).sum::<f64>() * f64::from(scoring.scale);
                    let bias = scoring.alibi.map_or(0.0, |alibi| alibi * slope(head, num_heads));
                    let score = score - f64::from(bias) * (row - position) as f64;
                    scoring.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = (first..=row).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sink = scoring.sinks.map_or(0.0, |sinks| (f64::from(sinks[head]) - max).exp());
                let total = weights.iter().sum::<f64>() + sink;
                for i in 0..head_dim {
                    let sum: f64 = (first..=row).map(|p| weights[p - first] * of(&self.values, p, head, i)).sum();
                    out.push(sum / total);
                }
            }
            out
        }
    }

    const SINKS: [f32; 9] = [0.5, -1.0, 2.0, -300.0, 300.0, 4.0, 0.0, 1.0, -3.0];

    /// Plain, capped, with linear biases, and with windows within a block, of a block, over several, and over parts;
    /// with sinks.
    fn scorings(head_dim: usize) -> Vec<AttentionScoring<'static>> {
        let scale = (head_dim as f32).sqrt().recip();
        let plain = AttentionScoring { scale, softcap: None, window: None, alibi: None, sinks: None };
        let windows = [1, 5, 16, 40, 270].map(|window| AttentionScoring { window: Some(window), ..plain });
        let capped = AttentionScoring { softcap: Some(0.7), ..plain };
        let biased = AttentionScoring { alibi: Some(0.3), ..plain };
        let sinks = AttentionScoring { sinks: Some(&SINKS), ..plain };
        let both =
            [AttentionScoring { window: Some(20), ..capped }, sinks, AttentionScoring { window: Some(40), ..sinks }];
        [&windows as &[_], &[plain, capped], &both, &[biased]].concat()
    }

    #[test]
    fn every_path_is_the_formula_and_gives_the_same_bits() {
        for (group, num_kv_heads, head_dim) in [(1, 2, 6), (3, 3, 10), (8, 1, 64), (3, 2, 80), (1, 1, 128), (8, 1, 256)]
        {
            for context_len in [1, 15, 16, 17, 37, 300] {
                for kv_dtype in TYPES {
                    let heads = Heads { num_heads: group * num_kv_heads, num_kv_heads, head_dim };
                    let case = AttentionCase::new(heads, context_len, kv_dtype);
                    // With 8-bit codes, queries and weights have 16 bits.
                    let tolerance = if kv_dtype == KvDtype::Int8 { 3e-4 } else { 2e-5 };
                    for scoring in scorings(head_dim) {
                        let best = case.attend(&[context_len], scoring, Isa::detect());
                        let what = format!("{heads:?}, {scoring:?}, {kv_dtype:?}");
                        for row in [0, context_len / 2, context_len - 1] {
                            let width = heads.num_heads * head_dim;
                            for (ours, exact) in best[row * width..][..width].iter().zip(case.naive(row, scoring)) {
                                let difference = (f64::from(*ours) - exact).abs();
                                assert!(difference < tolerance, "{what}, row {row}: {ours} {exact}");
                            }
                        }
                        for isa in Isa::available() {
                            assert_eq!(case.attend(&[context_len], scoring, isa), best, "{isa:?}, {what}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn chunks_of_a_prompt_and_other_sequences_change_no_bit() {
        let heads = Heads { num_heads: 6, num_kv_heads: 2, head_dim: 16 };
        for kv_dtype in [KvDtype::F16, KvDtype::Int8] {
            assert_chunks_and_others_change_no_bit(&AttentionCase::new(heads, 600, kv_dtype));
        }
    }

    fn assert_chunks_and_others_change_no_bit(case: &AttentionCase) {
        // Windows of 5, 40 and 270 keys, none, and a cap; sinks with and without a window; biases.
        let some = [1, 3, 4, 5, 7, 8, 9, 10].map(|i| scorings(16)[i]);
        for (isa, scoring) in Isa::available().into_iter().flat_map(|isa| some.map(|scoring| (isa, scoring))) {
            let whole = case.attend(&[600], scoring, isa);
            for chunks in [&[1usize; 600] as &[usize], &[7, 250, 1, 2, 255, 85], &[256, 256, 88], &[599, 1]] {
                assert_eq!(case.attend(chunks, scoring, isa), whole, "{isa:?}, {scoring:?}");
            }
            let prefix = |rows, context_len| PagedSequence { rows, context_len, blocks: &case.blocks };
            let queries: Vec<f32> = [269..270, 500..600, 0..5]
                .into_iter()
                .flat_map(|rows| case.queries[rows.start * 96..rows.end * 96].to_vec())
                .collect();
            let batch = [prefix(1, 270), prefix(100, 600), prefix(5, 5)];
            let out = attend(case.cache.view(&batch), &queries, scoring, isa);
            assert_eq!(out[..96], whole[269 * 96..270 * 96]);
            assert_eq!(out[96..101 * 96], whole[500 * 96..]);
            assert_eq!(out[101 * 96..], whole[..5 * 96]);
            assert!(attend(case.cache.view(&[]), &[], scoring, isa).is_empty());
        }
    }

    #[test]
    fn values_out_of_range_are_stored_as_the_greatest() {
        let heads = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 16 };
        let types = [
            (KvDtype::F16, 65504.0),
            (KvDtype::Bf16, half::bf16::MAX.to_f32()),
            // The step is rounded up to 16 bits.
            (
                KvDtype::Int8,
                half::bf16::from_bits((1e38f32 / 127.0).to_bits().div_ceil(1 << 16) as u16).to_f32() * 127.0,
            ),
        ];
        for (kv_dtype, greatest) in types {
            for value in [-3.4e38, f32::NEG_INFINITY] {
                let mut cache = PagedCache::new(heads, 1, kv_dtype).unwrap();
                let sequences = [PagedSequence { rows: 1, context_len: 1, blocks: &[0] }];
                cache.store(&sequences, &[0.0; 16], &[value; 16], Isa::detect());
                let out = attend(cache.view(&sequences), &[0.0; 16], scorings(16)[0], Isa::detect());
                let exact = |out: &f32| (out + greatest).abs() <= greatest * f32::EPSILON;
                assert!(out.iter().all(exact), "{kv_dtype:?}: {out:?} {greatest}");
            }
        }
    }

    #[test]
    fn nan_is_not_hidden() {
        let heads = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 16 };
        let mut one = [1.0; 16];
        one[5] = f32::NAN;
        for (kv_dtype, isa) in
            TYPES.into_iter().flat_map(|kind| Isa::available().into_iter().map(move |isa| (kind, isa)))
        {
            for [key, value] in [[&one, &[1.0; 16]], [&[1.0; 16], &one]] {
                let mut cache = PagedCache::new(heads, 1, kv_dtype).unwrap();
                let sequences = [PagedSequence { rows: 1, context_len: 1, blocks: &[0] }];
                cache.store(&sequences, key, value, isa);
                let out = attend(cache.view(&sequences), &[1.0; 16], scorings(16)[5], isa);
                assert!(out[5].is_nan(), "{kv_dtype:?}, {isa:?}: {out:?}");
            }
        }
    }
}
