use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::{
    Batch, Span,
    kv_cache::{BLOCK_TOKENS, LayerCache},
};
use crate::kernels::{
    Isa,
    attention::{Cache, Heads, Row, attend},
};

/// Causal attention of a packed batch over a paged cache.
#[derive(Clone)]
pub struct PagedAttention<'a> {
    pub batch: &'a Batch,
    pub heads: Heads,
    pub isa: Isa,
}

impl PagedAttention<'_> {
    /// Attends from `queries`, `[rows, num_heads * head_dim]`, to the cached keys and values of each
    /// row's own sequence up to the row's position. Same shape back.
    pub fn forward(&self, queries: &Tensor, cache: &LayerCache) -> Result<Tensor> {
        if queries.device().is_cpu() {
            queries.apply_op3_no_bwd(&cache.keys, &cache.values, &self)
        } else {
            let spans = self.batch.spans.iter();
            Tensor::cat(&spans.map(|span| self.gathered(span, queries, cache)).collect::<Result<Vec<_>>>()?, 0)
        }
    }

    /// One sequence at a time in tensor operations, for devices without a kernel of our own.
    fn gathered(&self, span: &Span, queries: &Tensor, cache: &LayerCache) -> Result<Tensor> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let slots: Vec<u32> = (0..span.context_len).map(|p| span.slot(p, BLOCK_TOKENS) as u32).collect();
        let slots = Tensor::new(slots, queries.device())?;
        let group = num_heads / num_kv_heads;
        let cached = |all: &Tensor| {
            let rows = all.index_select(&slots, 0)?.reshape((span.context_len, num_kv_heads, 1, head_dim))?;
            let rows = rows.broadcast_as((span.context_len, num_kv_heads, group, head_dim))?;
            rows.reshape((span.context_len, num_heads, head_dim))?.transpose(0, 1)?.contiguous()
        };
        let (keys, values) = (cached(&cache.keys)?, cached(&cache.values)?);
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

/// What each row of a sequence sees: all tokens up to its own.
fn rows_of(span: &Span) -> impl Iterator<Item = Row<'_>> {
    let first = span.context_len - span.len;
    (0..span.len).map(move |row| Row { context_len: first + row + 1, blocks: &span.blocks })
}

impl CustomOp3 for &PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys: &CpuStorage,
        _: &Layout,
        values: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (start, end) = queries_layout
            .contiguous_offsets()
            .ok_or_else(|| candle_core::Error::msg("the queries are not contiguous"))?;
        let queries = &queries.as_slice::<f32>()?[start..end];
        let mut out = vec![0f32; queries.len()];
        let rows: Vec<Row<'_>> = self.batch.spans.iter().flat_map(rows_of).collect();
        let cache = Cache { keys: keys.as_slice()?, values: values.as_slice()?, block_tokens: BLOCK_TOKENS };
        attend(self.heads, &rows, queries, cache, self.isa, &mut out);
        Ok((CpuStorage::F32(out), queries_layout.shape().clone()))
    }
}
