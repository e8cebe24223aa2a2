//! GLM 4.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{Spec, layout::Names, spec::Order},
    weights::Config,
};

/// GLM-4-9B and GLM-Edge.
pub fn glm(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "partial_rotary_factor": 0.5, "attention_bias": true, "attention_out_bias": false, "head_dim": 128,
    }));
    Ok(base::spec(config, "glm")?.neighbours())
}

/// GLM-4-0414.
pub fn glm4(config: &Config) -> Result<Spec> {
    let mut spec = glm(config)?;
    spec.architecture = "glm4";
    spec.order = Order::SANDWICH;
    spec.layout.names =
        Names { attention_out_norm: "post_self_attn_layernorm", mlp_out_norm: "post_mlp_layernorm", ..Names::LLAMA };
    Ok(spec)
}
