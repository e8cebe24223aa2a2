//! Llama 1 to 3.x, the many models of its shape (SmolLM2, Yi, TinyLlama, DeepSeek distillations), and those that differ
//! in a detail.

use serde_json::json;

use super::{base, mistral};
use crate::{Result, decoder::Spec, weights::Config};

pub fn llama(config: &Config) -> Result<Spec> {
    // GGUF calls mixtures of experts "llama", too.
    match config.opt_usize("num_local_experts")?.unwrap_or(0) {
        0 => base::spec(config, "llama"),
        _ => mistral::mixtral(config),
    }
}

/// Arcee's AFM: no gate, and another activation.
pub fn arcee(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"hidden_act": "relu2"}));
    Ok(base::spec(config, "arcee")?.dense(|mlp| mlp.gated = false))
}

/// Ernie 4.5, but for its mixtures of experts: neighbors are turned together.
pub fn ernie4_5(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "head_dim": 128, "tie_word_embeddings": true, "use_bias": false, "rope_theta": 5e5,
    }));
    let config = &config.renamed(&[("use_bias", "attention_bias"), ("use_bias", "mlp_bias")]);
    Ok(base::spec(config, "ernie4_5")?.interleaved())
}

/// Helium: as Ernie.
pub fn helium(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"head_dim": 128, "attention_out_bias": false, "rope_theta": 1e5}));
    Ok(base::spec(config, "helium")?.interleaved())
}

/// Seed-OSS: with biases.
pub fn seed_oss(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"head_dim": 128, "attention_bias": true, "attention_out_bias": false}));
    base::spec(config, "seed_oss")
}
