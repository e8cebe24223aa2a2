//! Mistral, Ministral 3, the text part of multimodal ones, and Mixtral.

use serde_json::json;

use super::{base, experts, rope_config, unread};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
        spec::AttentionTemperature,
    },
    weights::Config,
};

pub fn mistral(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"sliding_window": 4096}));
    base::spec(config, "mistral")?.slide(config, |_| true)
}

/// Ministral 3: queries grow with positions beyond the context of pretraining.
pub fn ministral3(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"head_dim": 128}));
    let mut spec = base::spec(config, "ministral3")?.slide(config, |_| true)?;
    if let Some(rope) = rope_config::parameters(config, rope_config::FULL)?
        && let Some(beta) = rope.opt_f64("llama_4_scaling_beta")?
    {
        let place = if rope.get(ORIGINAL).is_some() { &rope } else { config };
        let temperature = AttentionTemperature { beta, positions: place.size(ORIGINAL)? };
        spec.each_attention(|attention| attention.temperature = Some(temperature));
    }
    Ok(spec)
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// Mistral Small 3 and Ministral 3 with images.
pub fn mistral3(config: &Config) -> Result<Spec> {
    let text = unread::text_config(config, "mistral")?;
    let config = &text.as_ref().unwrap_or(config);
    let mut spec = match config.opt_str("model_type")? {
        Some("ministral3") => ministral3(config)?,
        _ => mistral(&config.or(json!({"sliding_window": null, "head_dim": 128, "rope_theta": 1e9})))?,
    };
    spec.layout.prefixes = &[("model.", "model.language_model."), ("", "language_model."), ("model.", "")];
    spec.layout.inside = text.as_ref().map(|_| spec.layout.prefixes[0]);
    Ok(spec)
}

pub fn mixtral(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"rope_theta": 1e6, "num_experts_per_tok": 2}));
    let experts = experts::spec(config, "intermediate_size", true)?;
    let mut spec = base::spec(config, "mixtral")?.slide(config, |_| true)?.experts(experts);
    spec.layout.names = Names {
        router: "block_sparse_moe.gate",
        expert: MlpNames {
            gate: "block_sparse_moe.experts.{}.w1",
            up: "block_sparse_moe.experts.{}.w3",
            gate_up: "",
            down: "block_sparse_moe.experts.{}.w2",
        },
        experts: MlpNames {
            gate: "block_sparse_moe.switch_mlp.gate_proj",
            up: "block_sparse_moe.switch_mlp.up_proj",
            gate_up: "",
            down: "block_sparse_moe.switch_mlp.down_proj",
        },
        ..Names::LLAMA
    };
    Ok(spec)
}
