//! GGUF's names in terms of Hugging Face's, so that an architecture is described once.

use serde_json::{Map, Value, json};

use super::GgufFile;
use crate::{Result, weights::Config};

/// The metadata under the keys of `config.json`.
pub fn config(file: &GgufFile) -> Result<Config> {
    let metadata = &file.metadata;
    let arch = metadata.opt_str("general.architecture")?.ok_or_else(|| metadata.missing("general.architecture"))?;
    let mut values = Map::new();
    values.insert("model_type".into(), json!(arch));
    for (key, gguf_key) in [
        ("hidden_size", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("intermediate_size", "feed_forward_length"),
        ("max_position_embeddings", "context_length"),
        ("num_local_experts", "expert_count"),
    ] {
        if let Some(n) = metadata.opt_usize(&format!("{arch}.{gguf_key}"))? {
            values.insert(key.into(), json!(n));
        }
    }
    if let Some(eps) = metadata.opt_f64(&format!("{arch}.attention.layer_norm_rms_epsilon"))? {
        values.insert("rms_norm_eps".into(), json!(eps));
    }
    values.insert("vocab_size".into(), json!(vocab_size(file)?));
    values.insert("tie_word_embeddings".into(), json!(!file.contains("output.weight")));
    values.insert("attention_bias".into(), json!(file.contains("blk.0.attn_q.bias")));
    values.insert("attention_out_bias".into(), json!(file.contains("blk.0.attn_output.bias")));
    values.insert("mlp_bias".into(), json!(file.contains("blk.0.ffn_down.bias")));
    values.insert("rope_parameters".into(), rope_parameters(file, arch)?);
    Ok(Config::new(&file.path, values))
}

fn vocab_size(file: &GgufFile) -> Result<usize> {
    Ok(file.get("token_embd.weight")?.shape[0])
}

fn rope_parameters(file: &GgufFile, arch: &str) -> Result<Value> {
    let metadata = &file.metadata;
    let key = |name: &str| format!("{arch}.rope.{name}");
    let mut rope = Map::new();
    rope.insert("rope_theta".into(), json!(metadata.opt_f64(&key("freq_base"))?.unwrap_or(10_000.0)));
    let kind = metadata.opt_str(&key("scaling.type"))?.unwrap_or("none");
    if kind != "none" {
        rope.insert("rope_type".into(), json!(kind));
    }
    // Files from before `scaling.type` have a linear scale only.
    if let Some(factor) = metadata.opt_f64(&key("scale_linear"))?.filter(|_| kind == "none") {
        rope.insert("rope_type".into(), json!("linear"));
        rope.insert("factor".into(), json!(factor));
    }
    for (hf_key, gguf_key) in [
        ("factor", "scaling.factor"),
        ("original_max_position_embeddings", "scaling.original_context_length"),
        ("beta_fast", "scaling.yarn_beta_fast"),
        ("beta_slow", "scaling.yarn_beta_slow"),
    ] {
        if let Some(number) = metadata.opt_f64(&key(gguf_key))? {
            let whole = hf_key == "original_max_position_embeddings";
            rope.insert(hf_key.into(), if whole { json!(number as u64) } else { json!(number) });
        }
    }
    if file.contains("rope_freqs.weight") {
        rope.insert("rope_type".into(), json!("factors"));
        rope.insert("factors".into(), json!(file.get("rope_freqs.weight")?.to_f32()?));
    }
    Ok(Value::Object(rope))
}
