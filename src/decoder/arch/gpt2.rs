//! GPT-2, and StarCoder 1, which shares keys and values between its heads.

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

pub fn gpt2(config: &Config) -> Result<Spec> {
    let mut spec = plain(config, "gpt2")?;
    spec.layout = LAYOUT;
    Ok(spec)
}

pub fn gpt_bigcode(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"activation_function": "gelu_pytorch_tanh"}));
    let shares = config.bool_or("multi_query", true)?;
    let config = &if shares { config.with(json!({"num_key_value_heads": 1})) } else { config.clone() };
    let mut spec = plain(config, "gpt_bigcode")?;
    spec.layout = Layout { transposed: false, qkv_by_head: !shares, ..LAYOUT };
    Ok(spec)
}

fn plain(config: &Config, architecture: &'static str) -> Result<Spec> {
    let config = &config.renamed(&[
        ("n_embd", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
        ("n_positions", "max_position_embeddings"),
        ("n_inner", "intermediate_size"),
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("activation_function", "hidden_act"),
    ]);
    let config = &config.or(json!({
        "intermediate_size": 4 * config.size("hidden_size")?, "tie_word_embeddings": true,
        "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "attention_bias": true, "mlp_bias": true,
    }));
    let mut spec = base::without_rope(config, architecture)?.layer_norm(true).dense(|mlp| mlp.gated = false);
    spec.learned_positions = true;
    if !config.bool_or("scale_attn_weights", true)? {
        spec.each_attention(|attention| attention.scale = 1.0);
    }
    if config.bool_or("scale_attn_by_inverse_layer_idx", false)? {
        let mut number = 0.0;
        spec.each_attention(|attention| {
            number += 1.0;
            attention.scale *= f64::recip(number);
        });
    }
    Ok(spec)
}

const NAMES: Names = Names {
    embedding: "transformer.wte",
    positions: "transformer.wpe",
    norm: "transformer.ln_f",
    layers: "transformer.h",
    attention_norm: "ln_1",
    qkv: "attn.c_attn",
    out: "attn.c_proj",
    mlp_norm: "ln_2",
    mlp: MlpNames { up: "mlp.c_fc", down: "mlp.c_proj", gate: "", gate_up: "" },
    ..Names::LLAMA
};

const LAYOUT: Layout =
    Layout { names: NAMES, prefixes: &[("transformer.", "")], transposed: true, mlx: Some(&MLX), ..Layout::LLAMA };

const MLX: Layout = Layout {
    names: Names { embedding: "model.wte", positions: "model.wpe", norm: "model.ln_f", layers: "model.h", ..NAMES },
    ..Layout::LLAMA
};
