//! Cohere's Command R and Command R7B.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        spec::{NormOver, NormPlacement},
    },
    weights::Config,
};

pub fn cohere(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "tie_word_embeddings": true, "layer_norm_eps": 1e-5, "logit_scale": 0.0625, "rope_theta": 5e5,
    }));
    let config = &config.renamed(&[("layer_norm_eps", "rms_norm_eps")]);
    let mut spec = base::spec(config, "cohere")?.layer_norm(false).interleaved();
    spec.norm_placement = NormPlacement::PARALLEL;
    spec.head.scale = config.positive("logit_scale")? as f32;
    if config.bool_or("use_qk_norm", false)? {
        spec.normalize_queries_and_keys(NormOver::EachHead);
    }
    Ok(spec)
}

/// Layers that attend to everything know no positions.
pub fn cohere2(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"sliding_window": 4096, "rope_theta": 1e4}));
    let period = config.opt_usize("sliding_window_pattern")?.unwrap_or(4).max(1);
    let mut spec = cohere(config)?.slide(config, |layer| (layer + 1) % period != 0)?;
    spec.architecture = "cohere2";
    Ok(spec.rope_in_windows())
}
