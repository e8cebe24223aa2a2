//! Qwen 2, 2.5 and 3, their distillations and mixtures of experts.

use serde_json::json;

use super::{base, experts};
use crate::{
    Result,
    decoder::{
        Spec,
        spec::{DenseSpec, ExpertsSpec, MlpSpec, NormOver, SharedSpec},
    },
    weights::Config,
};

pub fn qwen2(config: &Config) -> Result<Spec> {
    let mut spec = base::spec(config, "qwen2")?;
    spec.each_attention(|attention| (attention.qkv_bias, attention.out_bias) = (true, false));
    windows(spec, config, |layer, first| layer >= first)
}

pub fn qwen3(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"head_dim": 128}));
    let mut spec = base::spec(config, "qwen3")?;
    spec.normalize_queries_and_keys(NormOver::Head);
    windows(spec, config, |layer, first| layer >= first)
}

pub fn qwen2_moe(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"num_experts_per_tok": 4, "norm_topk_prob": false, "intermediate_size": 5632}));
    let mut spec = base::spec(config, "qwen2_moe")?;
    let bias = config.bool_or("qkv_bias", true)?;
    spec.each_attention(|attention| (attention.qkv_bias, attention.out_bias) = (bias, false));
    let shared = DenseSpec { bias: false, ..base::dense(config, "shared_expert_intermediate_size")? };
    let spec = windows(spec, config, |layer, end| layer % 2 == 0 && layer < end)?;
    with_experts(spec, config, Some(SharedSpec { network: shared, gated: true }))
}

pub fn qwen3_moe(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"num_experts_per_tok": 8, "norm_topk_prob": false, "intermediate_size": 6144}));
    let mut spec = base::spec(config, "qwen3_moe")?;
    spec.normalize_queries_and_keys(NormOver::Head);
    let spec = windows(spec, config, |_, _| true)?;
    with_experts(spec, config, None)
}

/// `slides` gets a layer and `max_window_layers`.
fn windows(spec: Spec, config: &Config, slides: impl Fn(usize, usize) -> bool) -> Result<Spec> {
    if !config.bool_or("use_sliding_window", false)? {
        return Ok(spec);
    }
    let limit = config.opt_usize("max_window_layers")?.unwrap_or(28);
    let config = &config.or(json!({"sliding_window": 4096}));
    spec.slide(config, |layer| slides(layer, limit))
}

/// Every `decoder_sparse_step`th layer has experts, but for those in `mlp_only_layers`.
fn with_experts(mut spec: Spec, config: &Config, shared: Option<SharedSpec>) -> Result<Spec> {
    let normalize = config.bool_or("norm_topk_prob", false)?;
    let experts = experts::spec(config, "moe_intermediate_size", normalize)?;
    let experts = MlpSpec::Experts(ExpertsSpec { shared, ..experts });
    let step = config.opt_usize("decoder_sparse_step")?.unwrap_or(1).max(1);
    let dense = config.ids("mlp_only_layers")?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if (index + 1) % step == 0 && !dense.contains(&(index as u32)) {
            layer.mlp = experts.clone();
        }
    }
    Ok(spec)
}
