//! Granite: a llama with scales, and its mixtures of experts.

use serde_json::json;

use super::{base, experts};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
        spec::{DenseSpec, SharedSpec},
    },
    weights::Config,
};

/// Granite 3 and 4 without mixtures.
pub fn granite(config: &Config) -> Result<Spec> {
    scaled(config, "granite")
}

/// Granite 3 with experts, and with one that all tokens go through.
pub fn granitemoe(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"num_experts_per_tok": 2}));
    let mut experts = experts::spec(config, "intermediate_size", true)?;
    // GGUF's key comes second.
    for key in ["shared_intermediate_size", "shared_expert_intermediate_size"] {
        if config.opt_usize(key)?.unwrap_or(0) > 0 {
            let network = DenseSpec { bias: false, ..base::dense(config, key)? };
            experts.shared = Some(SharedSpec { network, gated: false });
        }
    }
    let mut spec = scaled(config, "granitemoe")?.experts(experts);
    let shared = MlpNames { gate_up: "shared_mlp.input_linear", down: "shared_mlp.output_linear", gate: "", up: "" };
    let stacked = MlpNames {
        gate_up: "block_sparse_moe.input_linear",
        down: "block_sparse_moe.output_linear",
        gate: "block_sparse_moe.switch_mlp.gate_proj",
        up: "block_sparse_moe.switch_mlp.up_proj",
    };
    spec.layout.names =
        Names { router: "block_sparse_moe.router.layer", experts: stacked, shared, ..spec.layout.names };
    Ok(spec)
}

fn scaled(config: &Config, architecture: &'static str) -> Result<Spec> {
    let mut spec = base::spec(config, architecture)?;
    let scale = |key| if config.get(key).is_some() { config.positive(key) } else { Ok(1.0) };
    spec.embedding_scale = scale("embedding_multiplier")?;
    let attention_scale = scale("attention_multiplier")?;
    spec.each_attention(|attention| attention.scale = attention_scale);
    spec.residual_scale = scale("residual_multiplier")? as f32;
    spec.head.scale = scale("logits_scaling")?.recip() as f32;
    Ok(spec)
}
