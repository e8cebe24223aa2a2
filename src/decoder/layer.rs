//! A layer: mixer, feed-forward network, norms.

use candle_core::{Result, Tensor};

use super::{
    Pass, Spec,
    kv_cache::{CacheReader, CacheWriter},
    load::Loader,
    mixer::{Mixed, Mixer},
    mlp::Mlp,
    norm::Norm,
    ops::Ops,
};

/// Rows between the halves of a layer.
pub struct Begun {
    mixer_in: Tensor,
    mixed: Mixed,
}

impl Begun {
    /// Some of the rows, for the second half.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self { mixed: self.mixed.select(rows)?, mixer_in: self.mixer_in.index_select(rows, 0)? })
    }
}

/// A layer: a mixer and a feed-forward network, which add to the residual stream.
pub struct Layer {
    mixer_norm: Option<Norm>,
    mixer: Mixer,
    mixer_out_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    mlp: Mlp,
    mlp_out_norm: Option<Norm>,
    /// Whether norms of outputs are of their sum with the residual stream.
    norm_of_sum: bool,
    /// Whether both take the same input.
    parallel: bool,
    /// Multiplies what they add.
    scale: f32,
    ops: Ops,
}

impl Layer {
    pub fn load(load: &Loader<'_>, spec: &Spec, index: usize) -> crate::Result<Self> {
        let load = &load.layer(index);
        let (placement, names, hidden) = (spec.norm_placement, &load.layout.names, spec.hidden_size);
        let norm = |there: bool, name| there.then(|| load.norm(name, spec.norm, hidden, hidden)).transpose();
        Ok(Self {
            mixer_norm: norm(placement.attention_norm, names.attention_norm)?,
            mixer: Mixer::load(load, &spec.layers[index].mixer, hidden)?,
            mixer_out_norm: norm(placement.attention_out_norm, names.attention_out_norm)?,
            mlp_norm: norm(placement.mlp_norm, names.mlp_norm)?,
            mlp: Mlp::load(load, &spec.layers[index].mlp, hidden)?,
            mlp_out_norm: norm(placement.mlp_out_norm, names.mlp_out_norm)?,
            norm_of_sum: placement.norm_of_sum,
            parallel: placement.parallel,
            scale: spec.residual_scale,
            ops: load.ops.clone(),
        })
    }

    /// Whether rows can be taken through in tiles without reading matrices from far for each of them.
    pub fn is_small(&self) -> bool {
        const NEAR_BYTES: usize = 8 << 20;
        self.bytes() <= NEAR_BYTES && self.mlp.is_dense()
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        self.mixer.bytes() + self.mlp.bytes()
    }

    /// Maps the residual stream, `[rows, hidden]`, to the next layer's. Sequences are whole, and the result is
    /// differentiable.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.finish(x, &self.begin(x, pass, None)?, pass, None)
    }

    /// The first half, after which the cache has whatever later rows need of these.
    pub fn begin(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<CacheWriter<'_>>) -> Result<Begun> {
        let mixer_in = normed(self.mixer_norm.as_ref(), x)?;
        Ok(Begun { mixed: self.mixer.begin(&mixer_in, pass, cache)?, mixer_in })
    }

    /// The second half, of all rows or of [some](Begun::select).
    pub fn finish(&self, x: &Tensor, begun: &Begun, pass: &Pass<'_>, cache: Option<CacheReader<'_>>) -> Result<Tensor> {
        let mixed = self.mixer.finish(&begun.mixed, pass, cache)?;
        let sum = self.add(x, &mixed, self.mixer_out_norm.as_ref())?;
        let mlp_in = match (&self.mlp_norm, self.parallel) {
            (Some(norm), true) => norm.forward(x)?,
            (None, true) => begun.mixer_in.clone(),
            (norm, false) => normed(norm.as_ref(), &sum)?,
        };
        self.add(&sum, &self.mlp.forward(&mlp_in, &pass.adapted)?, self.mlp_out_norm.as_ref())
    }

    /// Adds an output to the residual stream.
    fn add(&self, x: &Tensor, y: &Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        match self.norm_of_sum {
            true => normed(norm, &self.ops.add(x, y, self.scale)?),
            false => self.ops.add(x, &normed(norm, y)?, self.scale),
        }
    }
}

fn normed(norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}
