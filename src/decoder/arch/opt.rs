//! OPT.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{Layout, MlpNames, Names},
        spec::{NormPlacement, NormSpec},
    },
    kernels::elementwise::NormKind,
    weights::Config,
};

pub fn opt(config: &Config) -> Result<Spec> {
    let bias = config.bool_or("enable_bias", true)?;
    let config = &config.renamed(&[("ffn_dim", "intermediate_size"), ("activation_function", "hidden_act")]);
    let config = &config.or(json!({
        "hidden_act": "relu", "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "attention_bias": bias,
        "mlp_bias": bias,
    }));
    let mut spec = base::without_rope(config, "opt")?.dense(|mlp| mlp.gated = false);
    let affine = config.bool_or("layer_norm_elementwise_affine", true)?;
    spec.norm = NormSpec { kind: NormKind::LayerNorm, weight: affine, bias: affine, eps: 1e-5 };
    spec.learned_positions = true;
    if config.get("word_embed_proj_dim").is_some() {
        spec.embedding_size = config.size("word_embed_proj_dim")?;
    }
    let before = config.bool_or("do_layer_norm_before", true)?;
    if !before {
        spec.norm_placement = NormPlacement::SUM_NORM;
    }
    spec.final_norm = before && !config.bool_or("_remove_final_layer_norm", false)?;
    spec.layout = Layout {
        names: Names {
            embedding: "model.decoder.embed_tokens",
            positions: "model.decoder.embed_positions",
            project_in: "model.decoder.project_in",
            project_out: "model.decoder.project_out",
            norm: "model.decoder.final_layer_norm",
            layers: "model.decoder.layers",
            attention_norm: "self_attn_layer_norm",
            attention_out_norm: "self_attn_layer_norm",
            out: "self_attn.out_proj",
            mlp_norm: "final_layer_norm",
            mlp_out_norm: "final_layer_norm",
            mlp: MlpNames { up: "fc1", down: "fc2", gate: "", gate_up: "" },
            ..Names::LLAMA
        },
        prefixes: &[("model.", "")],
        first_position: 2,
        ..Layout::LLAMA
    };
    Ok(spec)
}
