//! Falcon 1 and 2.

use serde_json::json;

use super::{base, bloom};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{Layout, Names},
        spec::NormPlacement,
    },
    weights::Config,
};

pub fn falcon(config: &Config) -> Result<Spec> {
    let newer = config.bool_or("new_decoder_architecture", false)?;
    let grouped = newer || !config.bool_or("multi_query", true)?;
    let config = &config.renamed(&[
        ("n_embed", "hidden_size"),
        ("num_kv_heads", "num_key_value_heads"),
        ("ffn_hidden_size", "intermediate_size"),
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("activation", "hidden_act"),
        ("bias", "attention_bias"),
        ("bias", "mlp_bias"),
    ]);
    let config = &config.or(json!({
        "intermediate_size": config.size("hidden_size")?.saturating_mul(4), "max_position_embeddings": 2048,
        "hidden_act": "gelu", "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    }));
    let config = &if grouped { config.clone() } else { config.with(json!({"num_key_value_heads": 1})) };
    let alibi = config.bool_or("alibi", false)?;
    let spec = if alibi { base::without_rope(config, "falcon")? } else { base::spec(config, "falcon")? };
    let mut spec = spec.layer_norm(true).dense(|mlp| mlp.gated = false);
    // Here biases are scaled with the scores.
    spec.each_attention(|attention| attention.alibi = alibi.then_some(attention.scale));
    let two_norms = newer && config.opt_usize("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
    spec.norm_placement = match newer || config.bool_or("parallel_attn", true)? {
        true => NormPlacement { mlp_norm: two_norms, ..NormPlacement::PARALLEL },
        false => NormPlacement::PRE_NORM,
    };
    let names =
        if two_norms { Names { attention_norm: "ln_attn", mlp_norm: "ln_mlp", ..bloom::NAMES } } else { bloom::NAMES };
    spec.layout = Layout { names, prefixes: &[("transformer.", "")], qkv_by_head: true, ..Layout::LLAMA };
    Ok(spec)
}
