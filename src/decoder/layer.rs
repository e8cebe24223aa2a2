use candle_core::{Result, Tensor};

use super::{
    Pass, Spec,
    attention::{Attention, Projected},
    kv_cache::Cached,
    linear::add,
    load::Loader,
    mlp::Mlp,
    norm::Norm,
};
use crate::kernels::Isa;

/// What a layer's first half gives to its second.
pub struct Begun {
    attention_in: Tensor,
    pub projected: Projected,
}

impl Begun {
    /// That of some rows, whose keys and values are in the cache.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        let Projected { queries, keys, values } = &self.projected;
        let queries = queries.index_select(rows, 0)?;
        let projected = Projected { queries, keys: keys.clone(), values: values.clone() };
        Ok(Self { attention_in: self.attention_in.index_select(rows, 0)?, projected })
    }
}

/// A transformer layer: attention and a feed-forward network, which add to the residual stream.
pub struct Layer {
    attention_norm: Option<Norm>,
    attention: Attention,
    attention_out_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    mlp: Mlp,
    mlp_out_norm: Option<Norm>,
    /// Whether norms of outputs are of their sum with the residual stream.
    norm_of_sum: bool,
    /// Whether both take the same input.
    parallel: bool,
    /// Multiplies what they add.
    scale: f32,
    isa: Isa,
}

impl Layer {
    pub fn load(load: &Loader<'_>, spec: &Spec, index: usize) -> crate::Result<Self> {
        let load = &load.layer(index);
        let (placement, names, hidden) = (spec.norm_placement, &load.layout.names, spec.hidden_size);
        let norm = |there: bool, name| there.then(|| load.norm(name, spec.norm, hidden, hidden)).transpose();
        Ok(Self {
            attention_norm: norm(placement.attention_norm, names.attention_norm)?,
            attention: Attention::load(load, spec, &spec.layers[index])?,
            attention_out_norm: norm(placement.attention_out_norm, names.attention_out_norm)?,
            mlp_norm: norm(placement.mlp_norm, names.mlp_norm)?,
            mlp: Mlp::load(load, &spec.layers[index].mlp, hidden)?,
            mlp_out_norm: norm(placement.mlp_out_norm, names.mlp_out_norm)?,
            norm_of_sum: placement.norm_of_sum,
            parallel: placement.parallel,
            scale: spec.residual_scale,
            isa: load.isa,
        })
    }

    /// Whether rows can be taken through in tiles without reading matrices from far for each of them.
    pub fn is_small(&self) -> bool {
        const NEAR_BYTES: usize = 8 << 20;
        self.bytes() <= NEAR_BYTES && self.mlp.is_dense()
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        self.attention.bytes() + self.mlp.bytes()
    }

    /// Maps the residual stream, `[rows, hidden]`, to the next layer's.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.finish(x, &self.begin(x, pass)?, pass, None)
    }

    /// What comes before the keys and values of all rows have to be there.
    pub fn begin(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Begun> {
        let attention_in = normed(self.attention_norm.as_ref(), x)?;
        Ok(Begun { projected: self.attention.project(&attention_in, pass)?, attention_in })
    }

    /// The rest. Without a cache sequences are whole, and the result is differentiable.
    pub fn finish(&self, x: &Tensor, begun: &Begun, pass: &Pass<'_>, cache: Option<Cached<'_>>) -> Result<Tensor> {
        let attention = self.attention.finish(&begun.projected, pass, cache)?;
        let sum = self.add(x, &attention, self.attention_out_norm.as_ref())?;
        let mlp_in = match (&self.mlp_norm, self.parallel) {
            (Some(norm), true) => norm.forward(x)?,
            (None, true) => begun.attention_in.clone(),
            (norm, false) => normed(norm.as_ref(), &sum)?,
        };
        self.add(&sum, &self.mlp.forward(&mlp_in, &pass.adapted)?, self.mlp_out_norm.as_ref())
    }

    /// Adds an output to the residual stream.
    fn add(&self, x: &Tensor, y: &Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        match self.norm_of_sum {
            true => normed(norm, &add(x, y, self.scale, self.isa)?),
            false => add(x, &normed(norm, y)?, self.scale, self.isa),
        }
    }
}

fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}
