//! Attention with its projections.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::{
    Pass,
    kv_cache::{CacheReader, LayerCache, SharedLayerCache},
    linear::Linear,
    load::Loader,
    norm::Norm,
    ops::{AttentionHeads, Ops},
    spec::{AttentionSpec, AttentionTemperature, NormOver},
};
use crate::{autograd::composed, kernels::Isa};

/// The attention of a layer with its projections.
pub struct Attention {
    heads: AttentionHeads,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of queries and of keys.
    norms: Option<[Norm; 2]>,
    norm_after_rope: bool,
    /// Bounds queries, keys and values.
    clip: Option<f64>,
    temperature: Option<AttentionTemperature>,
    /// The index of the rotation of queries and keys, if positions rotate them.
    rope: Option<usize>,
    out: Linear,
    ops: Ops,
}

/// The queries, keys and values of some rows.
pub struct Projected {
    pub queries: Tensor,
    pub keys: Tensor,
    pub values: Tensor,
}

impl Attention {
    pub fn load(load: &Loader<'_>, spec: &AttentionSpec, hidden_size: usize) -> crate::Result<Self> {
        let heads = spec.heads();
        let names = &load.layout.names;
        let [query, key, value] = load.qkv(spec, hidden_size)?;
        let norm = |name, heads: usize| {
            spec.qk_norm.map(|norm| {
                let head_dim = spec.head_dim;
                let (len, size) = match norm.over {
                    NormOver::Head => (head_dim, head_dim),
                    NormOver::EachHead => (heads * head_dim, head_dim),
                    NormOver::All => (heads * head_dim, heads * head_dim),
                };
                load.norm(name, norm.norm, len, size)
            })
        };
        let norms = (norm(names.query_norm, heads.num_heads), norm(names.key_norm, heads.num_kv_heads));
        let norms = match norms {
            (Some(queries), Some(keys)) => Some([queries?, keys?]),
            _ => None,
        };
        let width = heads.num_heads * heads.head_dim;
        Ok(Self {
            heads: AttentionHeads {
                heads,
                scoring: spec.scoring(),
                sinks: spec.sinks.then(|| load.values(names.sinks, heads.num_heads)).transpose()?.map(Arc::from),
            },
            query,
            key,
            value,
            norms,
            norm_after_rope: spec.qk_norm.is_some_and(|norm| norm.after_rope),
            clip: spec.clip,
            temperature: spec.temperature,
            rope: spec.rope,
            out: load.linear(names.out, [hidden_size, width], spec.out_bias)?,
            ops: load.ops.clone(),
        })
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        [&self.query, &self.key, &self.value, &self.out].iter().map(|linear| linear.bytes()).sum()
    }

    pub fn isa(&self) -> Isa {
        self.ops.isa()
    }

    /// The queries, keys and values of `x`, `[rows, hidden]`.
    pub fn project(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Projected> {
        let linears = [&self.query, &self.key, &self.value];
        let [mut queries, mut keys, mut values] = Linear::all_adapted(linears, x, &pass.adapted)?;
        if !self.norm_after_rope {
            (queries, keys) = self.normed(queries, keys)?;
        }
        if let Some(bound) = self.clip {
            for x in [&mut queries, &mut keys, &mut values] {
                *x = composed([&*x], move |[x]| x.clamp(-bound, bound))?;
            }
        }
        if let Some(rope) = self.rope.map(|rope| &pass.rotations[rope]) {
            let head_dim = self.heads.heads.head_dim;
            (queries, keys) = (rope.apply(&queries, head_dim)?, rope.apply(&keys, head_dim)?);
        }
        if self.norm_after_rope {
            (queries, keys) = self.normed(queries, keys)?;
        }
        if let Some(temperature) = self.temperature {
            let scales: Vec<f32> = pass.batch.positions.iter().map(|position| temperature.at(*position)).collect();
            let scales = Tensor::new(scales, queries.device())?.to_dtype(queries.dtype())?.unsqueeze(1)?;
            queries = composed([&queries], move |[queries]| queries.broadcast_mul(&scales))?;
        }
        Ok(Projected { queries, keys, values })
    }

    /// The attention of the rows to the cache, which holds their keys and values already, and the output projection.
    /// Without a cache sequences are whole, and the result is differentiable.
    pub fn finish(&self, projected: &Projected, pass: &Pass<'_>, cache: Option<CacheReader<'_>>) -> Result<Tensor> {
        let Projected { queries, keys, values } = projected;
        let attended = match cache {
            Some(cache) => self.attend(queries, pass, cache)?,
            None => {
                if let Some(capture) = pass.capture {
                    capture.note(queries, keys, &self.heads)?;
                }
                let lens: Vec<usize> = pass.batch.spans.iter().map(|span| span.len).collect();
                self.ops.attend_within([queries, keys, values], &lens, &self.heads)?
            }
        };
        self.out.adapted(&attended, &pass.adapted)
    }

    fn normed(&self, queries: Tensor, keys: Tensor) -> Result<(Tensor, Tensor)> {
        match &self.norms {
            Some([of_queries, of_keys]) => Ok((of_queries.forward(&queries)?, of_keys.forward(&keys)?)),
            None => Ok((queries, keys)),
        }
    }

    /// Attends from `queries`, `[rows, num_heads * head_dim]`, to the cached keys and values of each
    /// row's own sequence up to the row's position. Same shape back.
    fn attend(&self, queries: &Tensor, pass: &Pass<'_>, cache: CacheReader<'_>) -> Result<Tensor> {
        let (heads, ops) = (&self.heads, &self.ops);
        match cache {
            CacheReader::Layer(LayerCache::Paged(cache)) => {
                ops.attend_paged(queries, cache.view(&pass.batch.sequences()), heads)
            }
            CacheReader::Part(SharedLayerCache::Paged(cache), part) => {
                ops.attend_paged(queries, cache.view(part), heads)
            }
            CacheReader::Layer(LayerCache::Tensors(cache)) => cache.attend(queries, heads, (pass.batch, &pass.plans)),
            _ => bail!("a layer with attention has no keys and values in the cache"),
        }
    }
}
