use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::{
    AttentionCapture, Batch, Pass, Span, Spec,
    differentiable::{composed, ternary, with_f32},
    kv_cache::{BLOCK_TOKENS, Cached, LayerCache},
    linear::Linear,
    load::Loader,
    norm::Norm,
    spec::{AttentionTemperature, LayerSpec, NormOver},
};
use crate::kernels::{
    Isa,
    attention::{
        CacheView, Heads, Scoring, attend,
        gradient::{self as attention_gradient, PackedSequences},
        slope,
    },
};

/// The attention of a layer with its projections.
pub struct Attention {
    heads: Heads,
    scoring: Scoring<'static>,
    /// What [`Scoring::sinks`] are.
    sinks: Option<Arc<[f32]>>,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of queries and of keys.
    norms: Option<[Norm; 2]>,
    norm_after_rope: bool,
    /// Bounds queries, keys and values.
    clip: Option<f64>,
    temperature: Option<AttentionTemperature>,
    /// Which rotation turns queries and keys by their positions.
    rope: Option<usize>,
    out: Linear,
    isa: Isa,
}

/// The queries, keys and values of some rows.
pub struct Projected {
    pub queries: Tensor,
    pub keys: Tensor,
    pub values: Tensor,
}

/// WholeSequences sequences, for as long as gradients may be asked for.
#[derive(Clone)]
struct WholeSequences {
    lens: Arc<[usize]>,
    sinks: Option<Arc<[f32]>>,
    heads: Heads,
    scoring: Scoring<'static>,
}

impl WholeSequences {
    fn sequences(&self) -> PackedSequences<'_> {
        let scoring = Scoring { sinks: self.sinks.as_deref(), ..self.scoring };
        PackedSequences { lens: &self.lens, heads: self.heads, scoring }
    }
}

impl Attention {
    pub fn load(load: &Loader<'_>, spec: &Spec, layer: &LayerSpec) -> crate::Result<Self> {
        let heads = spec.heads();
        let names = &load.layout.names;
        let [query, key, value] = load.qkv(spec)?;
        let norm = |name, heads: usize| {
            spec.attention.qk_norm.map(|norm| {
                let head_dim = spec.attention.head_dim;
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
            heads,
            scoring: spec.scoring(layer),
            sinks: spec.attention.sinks.then(|| load.values(names.sinks, heads.num_heads)).transpose()?.map(Arc::from),
            query,
            key,
            value,
            norms,
            norm_after_rope: spec.attention.qk_norm.is_some_and(|norm| norm.after_rope),
            clip: spec.attention.clip,
            temperature: spec.attention.temperature,
            rope: layer.rope,
            out: load.linear(names.out, [spec.hidden_size, width], spec.attention.out_bias)?,
            isa: load.isa,
        })
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        [&self.query, &self.key, &self.value, &self.out].iter().map(|linear| linear.bytes()).sum()
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
            let head_dim = self.heads.head_dim;
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

    /// What attends to the keys and values, which a cache has got already, and to those before. Without a cache
    /// sequences are whole, and the result is differentiable.
    pub fn finish(&self, projected: &Projected, pass: &Pass<'_>, cache: Option<Cached<'_>>) -> Result<Tensor> {
        let Projected { queries, keys, values } = projected;
        let attended = match cache {
            Some(cache) => self.attend(pass.batch, queries, cache)?,
            None => {
                if let Some(capture) = pass.capture {
                    self.show(queries, keys, capture)?;
                }
                self.within(pass.batch, queries, keys, values)?
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
    fn attend(&self, batch: &Batch, queries: &Tensor, cache: Cached<'_>) -> Result<Tensor> {
        match cache {
            Cached::Layer(LayerCache::Paged(cache)) => self.paged(queries, cache.view(&batch.sequences())),
            Cached::Part(cache, part) => self.paged(queries, cache.view(part)),
            Cached::Layer(LayerCache::Tensors { keys, values }) => {
                let spans = batch.spans.iter().map(|span| self.gathered(span, queries, keys, values));
                Tensor::cat(&spans.collect::<Result<Vec<_>>>()?, 0)
            }
        }
    }

    fn paged(&self, queries: &Tensor, cache: CacheView<'_>) -> Result<Tensor> {
        let scoring = Scoring { sinks: self.sinks.as_deref(), ..self.scoring };
        let out = with_f32(queries, |queries| attend(cache, queries, scoring, self.isa))?;
        Tensor::from_vec(out, queries.shape(), queries.device())
    }

    /// As `attend`, of whole sequences, and differentiable.
    fn within(&self, batch: &Batch, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let lens = batch.spans.iter().map(|span| span.len).collect();
        let whole = WholeSequences { lens, sinks: self.sinks.clone(), heads: self.heads, scoring: self.scoring };
        let (back, isa) = (whole.clone(), self.isa);
        ternary(
            [queries, keys, values],
            queries.dim(1)?,
            move |values| Ok(attention_gradient::forward(whole.sequences(), values, isa)),
            move |values, out, gradient| Ok(attention_gradient::backward(back.sequences(), values, out, gradient, isa)),
        )
    }

    /// Shows what one whole sequence is attended to with.
    fn show(&self, queries: &Tensor, keys: &Tensor, capture: &AttentionCapture) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let len = queries.dim(0)?;
        let by_head = |x: &Tensor, heads| x.reshape((len, heads, head_dim))?.transpose(0, 1)?.contiguous();
        let (queries, keys) = (by_head(queries, num_heads)?, by_head(keys, num_kv_heads)?);
        let weights = capture.weights.then(|| {
            let shared = (num_kv_heads, num_heads / num_kv_heads, len, head_dim);
            let keys = keys.unsqueeze(1)?.broadcast_as(shared)?.reshape((num_heads, len, head_dim))?;
            self.weights(&queries, &keys)
        });
        capture.note(&queries, &keys, weights.transpose()?.as_ref())
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
        let weights = self.weights(&queries.transpose(0, 1)?.contiguous()?, &keys)?;
        weights.matmul(&values)?.transpose(0, 1)?.contiguous()?.reshape((span.len, num_heads * head_dim))
    }

    /// What part of its attention each of the last rows, `[num_heads, rows, head_dim]`, gives to each key,
    /// `[num_heads, keys, head_dim]`: `[num_heads, rows, keys]`.
    fn weights(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let (num_heads, len, context_len) = (self.heads.num_heads, queries.dim(1)?, keys.dim(1)?);
        let mut scores = (queries.matmul(&keys.t()?)? * f64::from(self.scoring.scale))?;
        if let Some(alibi) = self.scoring.alibi {
            // What is the same for all keys of a row makes no difference.
            let biases = (0..num_heads).flat_map(|head| {
                let slope = alibi * slope(head, num_heads);
                (0..context_len).map(move |key| slope * key as f32)
            });
            let biases = Tensor::from_iter(biases, queries.device())?.reshape((num_heads, 1, context_len))?;
            scores = scores.broadcast_add(&biases.to_dtype(scores.dtype())?)?;
        }
        if let Some(cap) = self.scoring.softcap.map(f64::from) {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        let first = context_len - len;
        let mask = (0..len).flat_map(|row| {
            let end = first + row + 1;
            let seen = end.saturating_sub(self.scoring.window.unwrap_or(usize::MAX))..end;
            (0..context_len).map(move |key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY })
        });
        let mask = Tensor::from_iter(mask, queries.device())?.reshape((1, len, context_len))?;
        let mut scores = scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?;
        if let Some(sinks) = &self.sinks {
            let sinks = Tensor::new(&**sinks, queries.device())?.to_dtype(scores.dtype())?;
            let sinks = sinks.reshape((num_heads, 1, 1))?.broadcast_as((num_heads, len, 1))?;
            scores = Tensor::cat(&[&scores, &sinks], 2)?;
        }
        candle_nn::ops::softmax(&scores, D::Minus1)?.narrow(2, 0, context_len)?.contiguous()
    }
}
