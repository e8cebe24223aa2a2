//! OpenAI's gpt-oss.

use serde_json::json;

use super::{base, experts};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
        spec::{DenseSpec, ExpertsSpec},
    },
    kernels::elementwise::Activation,
    weights::Config,
};

pub fn gpt_oss(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "head_dim": 64, "num_key_value_heads": 8, "attention_bias": true, "sliding_window": 128, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072, "rope_theta": 150_000, "num_experts_per_tok": 4, "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }));
    let yarn = json!({"rope_parameters": {
        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false,
    }});
    let config = &if config.get("rope_scaling").is_none() { config.or(yarn) } else { config.clone() };
    let [slope, limit] = ["swiglu_alpha", "swiglu_limit"].map(|key| config.positive(key));
    let activation = Activation::ClampedSilu { slope: slope? as f32, limit: limit? as f32 };
    let experts = experts::spec(config, "intermediate_size", true)?;
    let expert = DenseSpec { activation, bias: true, ..experts.expert };
    let experts = ExpertsSpec { expert, router_bias: true, ..experts };
    let mut spec = base::spec(config, "gpt_oss")?.slide(config, |layer| layer % 2 == 0)?.experts(experts);
    spec.each_attention(|attention| attention.sinks = true);
    spec.layout.experts_transposed = true;
    spec.layout.gate_up_in_turn = true;
    let experts = MlpNames {
        gate: "mlp.experts.gate_proj",
        up: "mlp.experts.up_proj",
        gate_up: "mlp.experts.gate_up_proj",
        down: "mlp.experts.down_proj",
    };
    spec.layout.names = Names { router: "mlp.router", expert: experts, experts, ..Names::LLAMA };
    Ok(spec)
}
