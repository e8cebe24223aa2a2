use candle_core::{D, Result, Tensor};

use super::{
    Batch, Span,
    kv_cache::{BLOCK_TOKENS, LayerCache},
    linear::map,
};
use crate::kernels::{
    Isa,
    attention::{Heads, PagedCache, Sequence, attend},
};

/// Causal attention of a packed batch over a paged cache.
pub struct PagedAttention<'a> {
    pub batch: &'a Batch,
    pub heads: Heads,
    pub isa: Isa,
}

impl PagedAttention<'_> {
    /// Attends from `queries`, `[rows, num_heads * head_dim]`, to the cached keys and values of each
    /// row's own sequence up to the row's position. Same shape back.
    pub fn forward(&self, queries: &Tensor, cache: &LayerCache) -> Result<Tensor> {
        match cache {
            LayerCache::Paged(cache) => self.paged(queries, cache),
            LayerCache::Tensors { keys, values } => {
                let spans = self.batch.spans.iter().map(|span| self.gathered(span, queries, keys, values));
                Tensor::cat(&spans.collect::<Result<Vec<_>>>()?, 0)
            }
        }
    }

    fn paged(&self, queries: &Tensor, cache: &PagedCache) -> Result<Tensor> {
        let spans = self.batch.spans.iter();
        let sequences: Vec<Sequence<'_>> = spans
            .map(|span| Sequence { rows: span.len, context_len: span.context_len, blocks: &span.blocks })
            .collect();
        map([queries], |[queries]| {
            let mut out = vec![0f32; queries.len()];
            attend(&sequences, queries, cache, self.isa, &mut out);
            out
        })
    }

    /// One sequence at a time in tensor operations, for devices without a kernel of our own.
    fn gathered(&self, span: &Span, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let slots: Vec<u32> = (0..span.context_len).map(|p| span.slot(p, BLOCK_TOKENS) as u32).collect();
        let slots = Tensor::new(slots, queries.device())?;
        let group = num_heads / num_kv_heads;
        let cached = |all: &Tensor| {
            let rows = all.index_select(&slots, 0)?.to_dtype(queries.dtype())?;
            let rows = rows.reshape((span.context_len, num_kv_heads, 1, head_dim))?;
            let rows = rows.broadcast_as((span.context_len, num_kv_heads, group, head_dim))?;
            rows.reshape((span.context_len, num_heads, head_dim))?.transpose(0, 1)?.contiguous()
        };
        let (keys, values) = (cached(keys)?, cached(values)?);
        let queries = queries.narrow(0, span.start, span.len)?.reshape((span.len, num_heads, head_dim))?;
        let queries = queries.transpose(0, 1)?.contiguous()?;
        let scores = (queries.matmul(&keys.t()?)? * self.heads.scale())?;
        let first = span.context_len - span.len;
        let mask = (0..span.len).flat_map(|row| {
            (0..span.context_len).map(move |key| if key <= first + row { 0.0 } else { f32::NEG_INFINITY })
        });
        let mask = Tensor::from_iter(mask, queries.device())?.reshape((1, span.len, span.context_len))?;
        let scores = scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&values)?.transpose(0, 1)?.contiguous()?.reshape((span.len, num_heads * head_dim))
    }
}
