//! Keys of configurations that models in transformers ignore.

use super::model_type;
use crate::{Result, weights::Config};

/// Keys that architectures ignore though others read them.
const UNREAD: [(&[&str], &[&str]); 13] = [
    (
        &["bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "opt"],
        &["num_key_value_heads", "head_dim", "mlp_bias", "rms_norm_eps"],
    ),
    (&["bloom", "falcon", "gpt2", "gpt_bigcode", "opt"], &["attention_bias", "hidden_act", "intermediate_size"]),
    (&["phi", "stablelm", "starcoder2"], &["attention_bias", "mlp_bias", "rms_norm_eps"]),
    (&["stablelm"], &["head_dim"]),
    (&["exaone4", "ministral3", "mistral", "mixtral", "phi3", "qwen2", "qwen2_moe"], &["attention_bias", "mlp_bias"]),
    (&["cohere", "cohere2", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe"], &["mlp_bias"]),
    (
        &["gpt_oss", "granitemoe", "granitemoeshared", "hunyuan_v1_dense", "olmo", "olmo2", "olmo3", "olmoe"],
        &["mlp_bias"],
    ),
    (&["qwen3", "qwen3_moe"], &["mlp_bias"]),
    (&["nemotron"], &["rms_norm_eps"]),
    (&["llama"], &["num_local_experts"]),
    (&["mixtral", "phi3", "qwen3_moe", "starcoder2"], &["layer_types"]),
    (&["olmo2"], &["sliding_window"]),
    (&["cohere2"], &["use_qk_norm"]),
];

/// The configuration of a Hugging Face directory without the keys that its architecture ignores.
pub fn without(config: &Config, architecture: &str) -> Config {
    let keys = UNREAD.iter().filter(|(architectures, _)| architectures.contains(&architecture));
    let mut keys: Vec<&str> = keys.flat_map(|(_, keys)| keys.iter().copied()).collect();
    if architecture != "seed_oss" {
        // For the others it is a key of this crate's own.
        keys.push("attention_out_bias");
    }
    config.without(&keys)
}

/// The configuration of a multimodal model's text part, if it has one, without the keys that its architecture ignores.
/// `default` is the architecture of a text part that names none.
pub fn text_config(config: &Config, default: &str) -> Result<Option<Config>> {
    let Some(text) = config.opt_object("text_config")? else { return Ok(None) };
    let architecture = model_type(&text)?;
    Ok(Some(without(&text, architecture.as_deref().unwrap_or(default))))
}
