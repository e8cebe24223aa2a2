//! Mistral and Mixtral.

use serde_json::json;

use super::{base, experts};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
    },
    weights::Config,
};

pub fn mistral(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"sliding_window": 4096}));
    base::spec(config, "mistral")?.slide(config, |_| true)
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
