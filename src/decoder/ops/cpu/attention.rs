//! Attention to the blocks of a paged cache, and within whole sequences.

use std::sync::Arc;

use candle_core::{Error, Result, Tensor};

use crate::{
    autograd::{ternary, with_f32},
    decoder::ops::AttentionHeads,
    kernels::{
        Isa,
        attention::{
            self, CacheView,
            gradient::{self, PackedSequences},
        },
    },
};

pub fn attend(queries: &Tensor, cache: CacheView<'_>, heads: &AttentionHeads, isa: Isa) -> Result<Tensor> {
    let out = with_f32(queries, |queries| attention::attend(cache, queries, heads.scoring(), isa))?;
    Tensor::from_vec(out, queries.shape(), queries.device())
}

/// Whole sequences, for as long as gradients may be asked for.
#[derive(Clone)]
struct WholeSequences {
    lens: Arc<[usize]>,
    heads: AttentionHeads,
}

impl WholeSequences {
    fn sequences(&self) -> PackedSequences<'_> {
        PackedSequences { lens: &self.lens, heads: self.heads.heads, scoring: self.heads.scoring() }
    }
}

pub fn attend_within(qkv: [&Tensor; 3], lens: &[usize], heads: &AttentionHeads, isa: Isa) -> Result<Tensor> {
    let whole = WholeSequences { lens: lens.into(), heads: heads.clone() };
    let back = whole.clone();
    ternary(
        qkv,
        qkv[0].dim(1)?,
        move |values| {
            let out = gradient::forward(whole.sequences(), values, isa);
            out.ok_or_else(|| Error::Msg("no memory for the keys and values of whole sequences".to_owned()))
        },
        move |values, out, gradient| Ok(gradient::backward(back.sequences(), values, out, gradient, isa)),
    )
}
