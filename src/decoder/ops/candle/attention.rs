//! Attention of a packed batch in a few launches, however many sequences there are.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::{
    AttentionPlans, TensorCache,
    attention_plan::{AttentionChunk, PlanKey},
};
use crate::{
    decoder::{Batch, ops::AttentionHeads},
    kernels::attention::{Heads, slope},
};

/// A penalty of scores for each position that a key is outside of the window of a query.
const HIDDEN: f64 = 1e30;

/// Attends to the cached keys and values of each row's sequence: `[rows, num_heads * head_dim]`.
pub fn attend(
    queries: &Tensor,
    cache: &TensorCache,
    heads: &AttentionHeads,
    (batch, plans): (&Batch, &AttentionPlans),
) -> Result<Tensor> {
    let Heads { num_heads, num_kv_heads, head_dim } = heads.heads;
    let (window, max_elements) = (heads.scoring.window, cache.max_elements);
    let key = PlanKey { window, num_heads, key_width: num_kv_heads * head_dim, max_elements };
    let plan = plans.get(key, batch, queries.device())?;
    let biases = Biases::new(heads, queries)?;
    let chunks = plan.chunks.iter().map(|chunk| biases.attend(queries, cache, chunk));
    let chunks = chunks.collect::<Result<Vec<_>>>()?;
    let all = match chunks.as_slice() {
        [chunk] => chunk.clone(),
        chunks => Tensor::cat(chunks, 0)?,
    };
    plan.order.as_ref().map_or(Ok(all.clone()), |order| all.index_select(order, 0))
}

/// Terms of a layer's scores beside the dot products.
struct Biases<'a> {
    heads: &'a AttentionHeads,
    /// ALiBi's slopes, `[1, num_heads, 1, 1]`.
    slopes: Option<Tensor>,
    /// `[1, num_heads, 1, 1]`
    sinks: Option<Tensor>,
}

impl<'a> Biases<'a> {
    fn new(heads: &'a AttentionHeads, queries: &Tensor) -> Result<Self> {
        let num_heads = heads.heads.num_heads;
        let by_head = |values: Vec<f32>| Tensor::new(values, queries.device())?.reshape((1, num_heads, 1, 1));
        let slopes =
            heads.scoring.alibi.map(|alibi| (0..num_heads).map(|head| alibi * slope(head, num_heads)).collect());
        Ok(Self {
            heads,
            slopes: slopes.map(by_head).transpose()?,
            sinks: heads.sinks.as_ref().map(|sinks| by_head(sinks.to_vec())).transpose()?,
        })
    }

    /// The output of a chunk, `[tiles * rows, num_heads * head_dim]`.
    fn attend(&self, queries: &Tensor, cache: &TensorCache, chunk: &AttentionChunk) -> Result<Tensor> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads.heads;
        let (tiles, rows, keys, group) = (chunk.tiles, chunk.rows, chunk.keys, num_heads / num_kv_heads);
        let dtype = queries.dtype();
        let queries = match &chunk.queries {
            Some(rows) => &queries.index_select(rows, 0)?,
            None => queries,
        };
        // Query heads that share a key head are rows of one matrix.
        let queries = queries.reshape((tiles, rows, num_kv_heads, group, head_dim))?;
        let queries = queries.permute((0, 2, 3, 1, 4))?.contiguous()?;
        let queries = queries.reshape((tiles, num_kv_heads, group * rows, head_dim))?;
        let gathered = |all: &Tensor| {
            let all = all.index_select(&chunk.slots, 0)?.to_dtype(dtype)?;
            all.reshape((tiles, keys, num_kv_heads, head_dim))
        };
        let transposed_keys = gathered(&cache.keys)?.permute((0, 2, 3, 1))?.contiguous()?;
        let scores = queries.matmul(&transposed_keys)?.to_dtype(DType::F32)?;
        let weights = self.weights(&scores.reshape((tiles, num_heads, rows, keys))?, chunk)?;
        let weights = weights.to_dtype(dtype)?.reshape((tiles, num_kv_heads, group * rows, keys))?;
        let values = gathered(&cache.values)?.transpose(1, 2)?.contiguous()?;
        let out = weights.matmul(&values)?.reshape((tiles, num_kv_heads, group, rows, head_dim))?;
        out.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((tiles * rows, num_heads * head_dim))
    }

    /// The softmax of `scores`, `[tiles, num_heads, rows, keys]`, over the keys that each row sees.
    fn weights(&self, scores: &Tensor, chunk: &AttentionChunk) -> Result<Tensor> {
        let scoring = &self.heads.scoring;
        let mut scores = (scores * f64::from(scoring.scale))?;
        if let Some(slopes) = &self.slopes {
            // A term that all keys of a row share makes no difference, so positions count from any key on.
            scores = scores.broadcast_add(&slopes.broadcast_mul(&chunk.key_positions)?)?;
        }
        if let Some(cap) = scoring.softcap.map(f64::from) {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        let mut scores = scores.broadcast_add(&mask(chunk, scoring.window)?)?;
        let Some(sinks) = &self.sinks else { return softmax_last_dim(&scores) };
        let (tiles, num_heads, rows, keys) = scores.dims4()?;
        scores = Tensor::cat(&[&scores, &sinks.broadcast_as((tiles, num_heads, rows, 1))?], 3)?;
        softmax_last_dim(&scores.contiguous()?)?.narrow(3, 0, keys)?.contiguous()
    }
}

/// 0 for keys that a row sees, and far below any score for others, `[tiles, 1, rows, keys]`.
fn mask(chunk: &AttentionChunk, window: Option<usize>) -> Result<Tensor> {
    let age = chunk.query_positions.broadcast_sub(&chunk.key_positions)?;
    let beyond = match window {
        Some(window) => (age.neg()?.relu()? + (age - (window as f64 - 1.0))?.relu()?)?,
        None => age.neg()?.relu()?,
    };
    beyond * -HIDDEN
}
