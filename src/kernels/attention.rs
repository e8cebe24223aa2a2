use rayon::prelude::*;

use super::{Isa, dot};

/// The head layout of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// What dot products of queries and keys are multiplied by.
    pub fn scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}

/// One row of queries and where its keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Keys the row attends to.
    pub context_len: usize,
    /// The cache blocks they are in.
    pub blocks: &'a [u32],
}

/// The cached keys and values of a layer, `[slots, num_kv_heads * head_dim]` each.
#[derive(Debug, Clone, Copy)]
pub struct Cache<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub block_tokens: usize,
}

/// Multiply-adds below which a second thread costs more than it saves.
const PARALLEL_WORK: usize = 1 << 16;

/// `softmax(q Kᵀ / √head_dim) V` for each row and head. `queries` and `out` are
/// `[rows, num_heads * head_dim]`.
pub fn attend(heads: Heads, rows: &[Row<'_>], queries: &[f32], cache: Cache<'_>, isa: Isa, out: &mut [f32]) {
    let group_len = heads.num_heads / heads.num_kv_heads * heads.head_dim;
    let group = |(i, (queries, out)): (usize, (&[f32], &mut [f32]))| {
        let (row, kv_head) = (i / heads.num_kv_heads, i % heads.num_kv_heads);
        let group = Group { heads, kv_head, row: rows[row], queries, cache };
        match isa {
            Isa::Scalar => group.attend(out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512Vnni => super::x86::attention::avx2(&group, out),
        }
    };
    let keys: usize = rows.iter().map(|row| row.context_len).sum();
    if keys * heads.num_heads * heads.head_dim < PARALLEL_WORK {
        queries.chunks(group_len).zip(out.chunks_mut(group_len)).enumerate().for_each(group);
    } else {
        queries.par_chunks(group_len).zip(out.par_chunks_mut(group_len)).enumerate().for_each(group);
    }
}

/// The query heads of one row that share a key/value head; each key is read once for all of them.
pub struct Group<'a> {
    heads: Heads,
    kv_head: usize,
    row: Row<'a>,
    queries: &'a [f32],
    cache: Cache<'a>,
}

impl Group<'_> {
    /// Compiled into each instruction set's own function. None of them fuses or reorders sums, so all
    /// give the same bits.
    #[inline(always)]
    pub fn attend(&self, out: &mut [f32]) {
        let Self { heads, kv_head, row, queries, cache } = *self;
        let Heads { head_dim, .. } = heads;
        let width = heads.num_kv_heads * head_dim;
        let at = |position: usize| {
            let slot = row.blocks[position / cache.block_tokens] as usize * cache.block_tokens;
            (slot + position % cache.block_tokens) * width + kv_head * head_dim
        };
        let scale = heads.scale() as f32;
        let group = queries.len() / head_dim;
        let mut weights = vec![0f32; group * row.context_len];
        for position in 0..row.context_len {
            let key = &cache.keys[at(position)..][..head_dim];
            for (head, query) in queries.chunks(head_dim).enumerate() {
                weights[head * row.context_len + position] = dot(query, key) * scale;
            }
        }
        for weights in weights.chunks_mut(row.context_len) {
            softmax(weights);
        }
        for position in 0..row.context_len {
            let value = &cache.values[at(position)..][..head_dim];
            for (head, out) in out.chunks_mut(head_dim).enumerate() {
                let weight = weights[head * row.context_len + position];
                for (out, value) in out.iter_mut().zip(value) {
                    *out += weight * value;
                }
            }
        }
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in &mut *scores {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Softmax attention as the formula says it, in f64.
    fn naive(heads: Heads, row: Row<'_>, queries: &[f32], cache: Cache<'_>) -> Vec<f32> {
        let width = heads.num_kv_heads * heads.head_dim;
        let of = |all: &[f32], position: usize, head: usize, i: usize| {
            let slot = row.blocks[position / cache.block_tokens] as usize * cache.block_tokens;
            let kv_head = head * heads.num_kv_heads / heads.num_heads;
            f64::from(all[(slot + position % cache.block_tokens) * width + kv_head * heads.head_dim + i])
        };
        let mut out = Vec::new();
        for head in 0..heads.num_heads {
            let query = &queries[head * heads.head_dim..][..heads.head_dim];
            let score = |position: usize| {
                (0..heads.head_dim).map(|i| f64::from(query[i]) * of(cache.keys, position, head, i)).sum::<f64>()
            };
            let weights: Vec<f64> = (0..row.context_len).map(|p| (score(p) * heads.scale()).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..heads.head_dim {
                let sum: f64 = (0..row.context_len).map(|p| weights[p] * of(cache.values, p, head, i)).sum();
                out.push((sum / total) as f32);
            }
        }
        out
    }

    #[test]
    fn every_path_is_the_formula_and_gives_the_same_bits() {
        for (num_heads, num_kv_heads, head_dim) in [(4, 4, 6), (6, 2, 16), (9, 3, 64), (3, 1, 10)] {
            let heads = Heads { num_heads, num_kv_heads, head_dim };
            let noise = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
            };
            let (keys, values) = (noise(64 * num_kv_heads * head_dim, 1), noise(64 * num_kv_heads * head_dim, 2));
            let cache = Cache { keys: &keys, values: &values, block_tokens: 16 };
            let rows = [
                Row { context_len: 1, blocks: &[3] },
                Row { context_len: 37, blocks: &[2, 0, 1] },
                Row { context_len: 64, blocks: &[1, 3, 0, 2] },
            ];
            let queries = noise(rows.len() * num_heads * head_dim, 3);
            let run = |isa| {
                let mut out = vec![0.0; queries.len()];
                attend(heads, &rows, &queries, cache, isa, &mut out);
                out
            };
            let scalar = run(Isa::Scalar);
            let per_row = num_heads * head_dim;
            for (i, row) in rows.iter().enumerate() {
                let expected = naive(heads, *row, &queries[i * per_row..], cache);
                for (ours, expected) in scalar[i * per_row..].iter().zip(expected) {
                    assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
                }
            }
            for isa in Isa::available() {
                assert_eq!(run(isa), scalar, "{isa:?}");
            }
        }
    }
}
