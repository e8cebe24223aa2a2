//! What the configurations of all architectures have in common.

use super::rope;
use crate::{Result, decoder::Spec, weights::Config};

/// A decoder with the biases that the configuration names. Where it names no `head_dim`, that is the one given here,
/// or else what the hidden size leaves to each head.
pub fn spec(config: &Config, architecture: &'static str, head_dim: Option<usize>) -> Result<Spec> {
    let hidden_size = config.size("hidden_size")?;
    let num_heads = config.size("num_attention_heads")?;
    let num_kv_heads = config.opt_usize("num_key_value_heads")?.unwrap_or(num_heads);
    if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
        return Err(config.bad("num_key_value_heads", &format!("does not divide the {num_heads} query heads")));
    }
    let head_dim = config.opt_usize("head_dim")?.or(head_dim).unwrap_or(hidden_size / num_heads);
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(config.bad("head_dim", &format!("heads of {head_dim} have no rotary pairs")));
    }
    if let Some(activation) = config.opt_str("hidden_act")?.filter(|name| *name != "silu") {
        return Err(config.bad("hidden_act", &format!("{activation} is not an activation of {architecture}")));
    }
    let attention_bias = config.bool_or("attention_bias", false)?;
    let max_positions = config.size("max_position_embeddings")?;
    Ok(Spec {
        architecture,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        intermediate_size: config.size("intermediate_size")?,
        num_layers: config.size("num_hidden_layers")?,
        num_heads,
        num_kv_heads,
        head_dim,
        max_positions,
        norm_eps: config.positive("rms_norm_eps")?,
        qkv_bias: attention_bias,
        out_bias: config.bool_or("attention_out_bias", attention_bias)?,
        mlp_bias: config.bool_or("mlp_bias", false)?,
        qk_norm: false,
        tie_word_embeddings: config.bool_or("tie_word_embeddings", false)?,
        rope: rope::spec(config, max_positions, head_dim)?,
        layers_without_rope: Vec::new(),
    })
}
