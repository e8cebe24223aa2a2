use candle_core::{Result, Tensor};

use super::{
    Batch, Loader, Spec,
    attention::PagedAttention,
    kv_cache::LayerCache,
    linear::{Linear, map},
    norm::RmsNorm,
    rope::Rotation,
};
use crate::kernels::{Isa, attention::Heads, rows};

/// A transformer layer: attention and a gated feed-forward network, each behind a norm and added to
/// the residual stream.
pub struct Layer {
    heads: Heads,
    isa: Isa,
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    /// Of the queries and keys of each head.
    qk_norm: Option<[RmsNorm; 2]>,
    /// Whether queries and keys are turned by their positions.
    rope: bool,
    value: Linear,
    out: Linear,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    pub fn load(load: &Loader<'_>, spec: &Spec, index: usize) -> crate::Result<Self> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let (queries, keys) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
        let linear = |part: &str, shape, bias| load.linear(&name(part), shape, bias);
        let head_norm = |part: &str| load.norm(&name(part), spec.head_dim, spec.norm_eps);
        let qk_norm = match spec.qk_norm {
            true => Some([head_norm("self_attn.q_norm")?, head_norm("self_attn.k_norm")?]),
            false => None,
        };
        Ok(Self {
            heads: spec.heads(),
            isa: Isa::detect(),
            attention_norm: load.norm(&name("input_layernorm"), hidden, spec.norm_eps)?,
            query: linear("self_attn.q_proj", [queries, hidden], spec.qkv_bias)?,
            key: linear("self_attn.k_proj", [keys, hidden], spec.qkv_bias)?,
            qk_norm,
            rope: !spec.layers_without_rope.contains(&index),
            value: linear("self_attn.v_proj", [keys, hidden], spec.qkv_bias)?,
            out: linear("self_attn.o_proj", [hidden, queries], spec.out_bias)?,
            mlp_norm: load.norm(&name("post_attention_layernorm"), hidden, spec.norm_eps)?,
            gate: linear("mlp.gate_proj", [inner, hidden], spec.mlp_bias)?,
            up: linear("mlp.up_proj", [inner, hidden], spec.mlp_bias)?,
            down: linear("mlp.down_proj", [hidden, inner], spec.mlp_bias)?,
        })
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        let matrices = [&self.query, &self.key, &self.value, &self.out, &self.gate, &self.up, &self.down];
        matrices.iter().map(|linear| linear.bytes()).sum()
    }

    /// Maps the residual stream, `[rows, hidden]`, to the next layer's.
    pub fn forward(&self, x: &Tensor, batch: &Batch, rotation: &Rotation, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.attend(&self.attention_norm.forward(x)?, batch, rotation, cache)?)?;
        let h = self.mlp_norm.forward(&x)?;
        let h = self.silu_times(&self.gate.forward(&h)?, &self.up.forward(&h)?)?;
        add(&x, &self.down.forward(&h)?)
    }

    fn silu_times(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if !gate.device().is_cpu() {
            return gate.silu()? * up;
        }
        map([gate, up], |[gate, up]| rows::silu_times(gate, up, self.isa))
    }

    fn attend(&self, x: &Tensor, batch: &Batch, rotation: &Rotation, cache: &mut LayerCache) -> Result<Tensor> {
        let Heads { num_heads, num_kv_heads, .. } = self.heads;
        let (mut queries, mut keys) = (self.query.forward(x)?, self.key.forward(x)?);
        if let Some([query_norm, key_norm]) = &self.qk_norm {
            (queries, keys) = (query_norm.forward(&queries)?, key_norm.forward(&keys)?);
        }
        if self.rope {
            (queries, keys) = (rotation.apply(&queries, num_heads)?, rotation.apply(&keys, num_kv_heads)?);
        }
        cache.store(batch, &keys, &self.value.forward(x)?)?;
        let attention = PagedAttention { batch, heads: self.heads, isa: self.isa };
        self.out.forward(&attention.forward(&queries, cache)?)
    }
}

fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x + y;
    }
    map([x, y], |[x, y]| rows::add(x, y))
}
