//! Nemotron 3 and Minitron.

use serde_json::json;

use super::base;
use crate::{Result, decoder::Spec, weights::Config};

pub fn nemotron(config: &Config) -> Result<Spec> {
    let config = &config.renamed(&[("norm_eps", "rms_norm_eps")]).or(json!({
        "hidden_act": "relu2", "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5,
    }));
    let mut spec = base::spec(config, "nemotron")?.layer_norm(true).dense(|mlp| mlp.gated = false);
    spec.layout.norm_less_one = true;
    Ok(spec)
}
