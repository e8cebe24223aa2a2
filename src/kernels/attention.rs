use rayon::prelude::*;

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
pub fn attend(heads: Heads, rows: &[Row<'_>], queries: &[f32], cache: Cache<'_>, out: &mut [f32]) {
    let group_len = heads.num_heads / heads.num_kv_heads * heads.head_dim;
    let group = |(i, (queries, out)): (usize, (&[f32], &mut [f32]))| {
        let (row, kv_head) = (i / heads.num_kv_heads, i % heads.num_kv_heads);
        attend_group(heads, kv_head, rows[row], queries, cache, out);
    };
    let keys: usize = rows.iter().map(|row| row.context_len).sum();
    if keys * heads.num_heads * heads.head_dim < PARALLEL_WORK {
        queries.chunks(group_len).zip(out.chunks_mut(group_len)).enumerate().for_each(group);
    } else {
        queries.par_chunks(group_len).zip(out.par_chunks_mut(group_len)).enumerate().for_each(group);
    }
}

/// The query heads of one row that share a key/value head; each key is read once for all of them.
fn attend_group(heads: Heads, kv_head: usize, row: Row<'_>, queries: &[f32], cache: Cache<'_>, out: &mut [f32]) {
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

/// A dot product in eight running sums, which compilers turn into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}
