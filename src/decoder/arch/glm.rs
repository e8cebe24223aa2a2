//! GLM 4 and 4.5.

use serde_json::json;

use super::{base, experts};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
        spec::{DenseSpec, ExpertGroups, Gating, MlpSpec, NormOver, NormPlacement, RoutingSpec, SharedSpec},
    },
    weights::Config,
};

/// GLM-4-9B and GLM-Edge.
pub fn glm(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "partial_rotary_factor": 0.5, "attention_bias": true, "attention_out_bias": false, "head_dim": 128,
    }));
    Ok(base::spec(config, "glm")?.interleaved())
}

/// GLM-4-0414.
pub fn glm4(config: &Config) -> Result<Spec> {
    let mut spec = glm(config)?;
    spec.architecture = "glm4";
    spec.norm_placement = NormPlacement::SANDWICH;
    spec.layout.names =
        Names { attention_out_norm: "post_self_attn_layernorm", mlp_out_norm: "post_mlp_layernorm", ..Names::LLAMA };
    Ok(spec)
}

/// GLM-4.5 and GLM-4.5-Air: experts, some of them shared by all tokens, in all but the first layers.
pub fn glm4_moe(config: &Config) -> Result<Spec> {
    let config = &config.renamed(&[("n_routed_experts", "num_experts")]).or(json!({
        "partial_rotary_factor": 0.5, "attention_out_bias": false, "num_experts_per_tok": 8,
    }));
    let mut spec = base::spec(config, "glm4_moe")?;
    if config.bool_or("use_qk_norm", false)? {
        spec.normalize_queries_and_keys(NormOver::Head);
    }
    let mut experts = experts::spec(config, "moe_intermediate_size", config.bool_or("norm_topk_prob", true)?)?;
    experts.routing = RoutingSpec { gating: Gating::Sigmoid, biases: true, ..routing(config, experts.num_experts)? };
    let count = config.opt_usize("n_shared_experts")?.unwrap_or(1);
    if count > 0 {
        let intermediate_size = experts.expert.intermediate_size.saturating_mul(count);
        let network = DenseSpec { intermediate_size, ..experts.expert.clone() };
        experts.shared = Some(SharedSpec { network, gated: false });
    }
    let dense = config.opt_usize("first_k_dense_replace")?.unwrap_or(1);
    for layer in spec.layers.iter_mut().skip(dense) {
        layer.mlp = MlpSpec::Experts(experts.clone());
    }
    spec.layout.names.shared = MlpNames {
        gate: "mlp.shared_experts.gate_proj",
        up: "mlp.shared_experts.up_proj",
        gate_up: "",
        down: "mlp.shared_experts.down_proj",
    };
    Ok(spec)
}

/// The groups of experts and the scale of their weights.
fn routing(config: &Config, num_experts: usize) -> Result<RoutingSpec> {
    let count = config.opt_usize("n_group")?.unwrap_or(1).max(1);
    let per_token = config.opt_usize("topk_group")?.unwrap_or(1);
    if !num_experts.is_multiple_of(count) {
        return Err(config.bad("n_group", &format!("does not divide the {num_experts} experts")));
    }
    if per_token == 0 || per_token > count {
        return Err(config.bad("topk_group", &format!("not one to {count}, the groups there are")));
    }
    let groups = (count > 1).then_some(ExpertGroups { count, per_token });
    let scale = config.opt_f64("routed_scaling_factor")?.unwrap_or(1.0);
    Ok(RoutingSpec { groups, weight_scale: scale as f32, ..RoutingSpec::SOFTMAX })
}
