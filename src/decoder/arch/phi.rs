//! Phi 1.5 to 4.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
        spec::{NormOver, NormPlacement},
    },
    weights::Config,
};

/// Phi 1.5 and 2.
pub fn phi(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "hidden_act": "gelu_new", "partial_rotary_factor": 0.5, "attention_bias": true, "mlp_bias": true,
        "layer_norm_eps": 1e-5,
    }));
    let config = &config.renamed(&[("layer_norm_eps", "rms_norm_eps")]);
    let mut spec = base::spec(config, "phi")?.layer_norm(true).dense(|mlp| mlp.gated = false);
    spec.norm_placement = NormPlacement::PARALLEL;
    spec.head.bias = true;
    if config.bool_or("qk_layernorm", false)? {
        spec.normalize_queries_and_keys(NormOver::Head);
    }
    spec.layout.names = Names {
        norm: "model.final_layernorm",
        out: "self_attn.dense",
        query_norm: "self_attn.q_layernorm",
        key_norm: "self_attn.k_layernorm",
        mlp: MlpNames { up: "mlp.fc1", down: "mlp.fc2", gate: "", gate_up: "" },
        ..Names::LLAMA
    };
    Ok(spec)
}

/// Phi 3, 3.5 and 4, and their mini models.
pub fn phi3(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"original_max_position_embeddings": 4096}));
    base::spec(config, "phi3")?.slide(config, |_| true)
}
