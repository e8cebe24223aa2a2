//! Keys that configurations have and transformers' models do not look at.

use crate::weights::Config;

/// Keys that other architectures read, by those that do not.
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

/// The configuration of a Hugging Face directory without what its architecture does not read.
pub fn without(config: &Config, architecture: &str) -> Config {
    let keys = UNREAD.iter().filter(|(architectures, _)| architectures.contains(&architecture));
    let mut keys: Vec<&str> = keys.flat_map(|(_, keys)| keys.iter().copied()).collect();
    if architecture != "seed_oss" {
        // To the others it is a name of our own.
        keys.push("attention_out_bias");
    }
    config.without(&keys)
}
