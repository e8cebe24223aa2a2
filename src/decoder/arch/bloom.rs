//! BLOOM.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{Layout, MlpNames, Names},
    },
    weights::Config,
};

pub fn bloom(config: &Config) -> Result<Spec> {
    let config = &config.renamed(&[
        ("n_embed", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
        ("seq_length", "max_position_embeddings"),
        ("layer_norm_epsilon", "rms_norm_eps"),
    ]);
    let config = &config.or(json!({
        "intermediate_size": config.size("hidden_size")?.saturating_mul(4), "max_position_embeddings": 2048,
        "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "attention_bias": true,
        "mlp_bias": true,
    }));
    let key = "apply_residual_connection_post_layernorm";
    if config.bool_or(key, false)? {
        return Err(config.bad(key, "residual connections after norms are not supported"));
    }
    let mut spec = base::without_rope(config, "bloom")?.layer_norm(true).dense(|mlp| mlp.gated = false);
    spec.embedding_norm = true;
    spec.each_attention(|attention| attention.alibi = Some(1.0));
    spec.layout = Layout { names: NAMES, prefixes: &[("transformer.", "")], qkv_by_head: true, ..Layout::LLAMA };
    Ok(spec)
}

pub const NAMES: Names = Names {
    embedding: "transformer.word_embeddings",
    embedding_norm: "transformer.word_embeddings_layernorm",
    norm: "transformer.ln_f",
    layers: "transformer.h",
    qkv: "self_attention.query_key_value",
    out: "self_attention.dense",
    mlp: MlpNames { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h", gate: "", gate_up: "" },
    ..Names::LLAMA
};
