//! StarCoder 2.

use serde_json::json;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        layout::{MlpNames, Names},
    },
    weights::Config,
};

pub fn starcoder2(config: &Config) -> Result<Spec> {
    let bias = config.bool_or("use_bias", true)?;
    let config = &config.or(json!({
        "tie_word_embeddings": true, "hidden_act": "gelu_pytorch_tanh", "attention_bias": bias, "mlp_bias": bias,
        "norm_epsilon": 1e-5,
    }));
    let config = &config.renamed(&[("norm_epsilon", "rms_norm_eps")]);
    let spec = base::spec(config, "starcoder2")?.layer_norm(true).dense(|mlp| mlp.gated = false);
    let mut spec = spec.slide(config, |_| true)?;
    spec.layout.names =
        Names { mlp: MlpNames { up: "mlp.c_fc", down: "mlp.c_proj", gate: "", gate_up: "" }, ..Names::LLAMA };
    Ok(spec)
}
