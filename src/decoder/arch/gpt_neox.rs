//! GPT-NeoX: Pythia, Dolly, RedPajama and StableLM alpha.

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

pub fn gpt_neox(config: &Config) -> Result<Spec> {
    let config = &config.renamed(&[("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")]);
    let config = &config.or(json!({
        "hidden_act": "gelu", "partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5,
        "attention_bias": true, "mlp_bias": true,
    }));
    let config = &config.renamed(&[("layer_norm_eps", "rms_norm_eps")]);
    let mut spec = base::spec(config, "gpt_neox")?.layer_norm(true).dense(|mlp| mlp.gated = false);
    spec.norm_placement.parallel = config.bool_or("use_parallel_residual", true)?;
    spec.layout = LAYOUT;
    Ok(spec)
}

const NAMES: Names = Names {
    embedding: "gpt_neox.embed_in",
    norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    layers: "gpt_neox.layers",
    qkv: "attention.query_key_value",
    out: "attention.dense",
    mlp: MlpNames { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h", gate: "", gate_up: "" },
    ..Names::LLAMA
};

const LAYOUT: Layout =
    Layout { names: NAMES, prefixes: &[("gpt_neox.", "")], qkv_by_head: true, mlx: Some(&MLX), ..Layout::LLAMA };

const MLX: Layout = Layout {
    names: Names {
        embedding: "model.embed_in",
        norm: "model.final_layer_norm",
        head: "model.embed_out",
        layers: "model.h",
        ..NAMES
    },
    qkv_by_head: true,
    ..Layout::LLAMA
};
