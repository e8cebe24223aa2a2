//! StableLM.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        layout::Names,
        spec::{NormOver, NormPlacement, NormSpec, QkNorm},
    },
    weights::Config,
};

pub fn stablelm(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "partial_rotary_factor": 0.25, "attention_bias": config.bool_or("use_qkv_bias", false)?,
        "attention_out_bias": false, "layer_norm_eps": 1e-5,
    }));
    let config = &config.renamed(&[("layer_norm_eps", "rms_norm_eps")]);
    let mut spec = base::spec(config, "stablelm")?.layer_norm(true);
    if config.bool_or("use_parallel_residual", false)? {
        spec.norm_placement = NormPlacement::PARALLEL;
    }
    if config.bool_or("qk_layernorm", false)? {
        let norm = NormSpec { bias: false, ..spec.norm };
        spec.each_attention(|attention| {
            attention.qk_norm = Some(QkNorm { over: NormOver::EachHead, norm, after_rope: false })
        });
    }
    spec.layout.names = Names {
        query_norm: "self_attn.q_layernorm.norms.{}",
        key_norm: "self_attn.k_layernorm.norms.{}",
        ..Names::LLAMA
    };
    Ok(spec)
}
