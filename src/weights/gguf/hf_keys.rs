//! GGUF's metadata in terms of Hugging Face's configurations, so that an architecture is described once.

use serde_json::{Map, Value, json};

use super::{GgufArray, GgufFile};
use crate::{Result, weights::Config};

/// The architectures that llama.cpp calls otherwise.
const MODEL_TYPES: [(&str, &str); 12] = [
    ("chatglm", "glm"),
    ("command-r", "cohere"),
    ("gemma3", "gemma3_text"),
    ("glm4moe", "glm4_moe"),
    ("gpt-oss", "gpt_oss"),
    ("gptneox", "gpt_neox"),
    ("hunyuan-dense", "hunyuan_v1_dense"),
    ("mistral3", "ministral3"),
    ("phi2", "phi"),
    ("qwen2moe", "qwen2_moe"),
    ("qwen3moe", "qwen3_moe"),
    ("starcoder", "gpt_bigcode"),
];

/// GGUF's names of keys: of sizes, then of other numbers, then of the rest. Some have several names in `config.json`.
const SIZES: [(&str, &[&str]); 17] = [
    ("embedding_length", &["hidden_size"]),
    ("block_count", &["num_hidden_layers"]),
    ("attention.head_count", &["num_attention_heads"]),
    ("attention.head_count_kv", &["num_key_value_heads"]),
    ("attention.key_length", &["head_dim"]),
    ("attention.sliding_window", &["sliding_window"]),
    ("feed_forward_length", &["intermediate_size"]),
    ("context_length", &["max_position_embeddings"]),
    ("rope.scaling.original_context_length", &["original_max_position_embeddings"]),
    ("expert_count", &["num_local_experts", "num_experts"]),
    ("expert_used_count", &["num_experts_per_tok"]),
    ("expert_feed_forward_length", &["moe_intermediate_size"]),
    ("expert_shared_count", &["n_shared_experts"]),
    ("expert_group_count", &["n_group"]),
    ("expert_group_used_count", &["topk_group"]),
    ("leading_dense_block_count", &["first_k_dense_replace"]),
    ("expert_shared_feed_forward_length", &["shared_expert_intermediate_size"]),
];
const NUMBERS: [(&str, &[&str]); 11] = [
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    // Where both are there, this one counts.
    ("attention.layer_norm_epsilon", &["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
    ("attention.clamp_kqv", &["clip_qkv"]),
    ("attention.scale", &["attention_multiplier"]),
    ("attn_logit_softcapping", &["attn_logit_softcapping"]),
    ("final_logit_softcapping", &["final_logit_softcapping"]),
    ("embedding_scale", &["embedding_multiplier"]),
    ("residual_scale", &["residual_multiplier"]),
    ("logit_scale", &["logit_scale", "logits_scaling"]),
    ("expert_weights_scale", &["routed_scaling_factor"]),
    ("rope.freq_base_swa", &["rope_local_base_freq"]),
];

/// The metadata under the keys of `config.json`.
pub fn config(file: &GgufFile) -> Result<Config> {
    let metadata = &file.metadata;
    let arch = metadata.opt_str("general.architecture")?.ok_or_else(|| metadata.missing("general.architecture"))?;
    let model_type = MODEL_TYPES.iter().find(|(theirs, _)| *theirs == arch).map_or(arch, |(_, ours)| ours);
    let mut values = Map::new();
    let mut set =
        |keys: &[&str], value: Value| keys.iter().for_each(|key| _ = values.insert((*key).into(), value.clone()));
    set(&["model_type"], json!(model_type));
    for (key, ours) in SIZES {
        // Zeros stand for absent values.
        if let Some(n) = metadata.opt_usize(&format!("{arch}.{key}"))?.filter(|n| *n > 0) {
            set(ours, json!(n));
        }
    }
    let key = format!("{arch}.attention.sliding_window");
    if metadata.opt_usize(&key)?.map_or(!has_unnamed_window(file, arch)?, |window| window == 0) {
        // No window is none: Hugging Face's defaults are not those of GGUF.
        set(&["sliding_window"], Value::Null);
    }
    // The last ones predict further tokens, which is no part of the decoder.
    let further = metadata.opt_usize(&format!("{arch}.nextn_predict_layers"))?.unwrap_or(0);
    if let Some(layers) = metadata.opt_usize(&format!("{arch}.block_count"))?.filter(|layers| *layers > further) {
        set(&["num_hidden_layers"], json!(layers - further));
    }
    for (key, ours) in NUMBERS {
        if let Some(n) = metadata.opt_f64(&format!("{arch}.{key}"))? {
            set(ours, json!(n));
        }
    }
    let key = format!("{arch}.use_parallel_residual");
    if let Some(parallel) = metadata.opt_bool(&key)? {
        set(&["use_parallel_residual"], json!(parallel));
    }
    let key = format!("{arch}.attention.sliding_window_pattern");
    if let Some(GgufArray::Bools(slides)) = metadata.opt_array(&key).ok().flatten() {
        let kinds = slides.iter().map(|slides| if *slides { "sliding_attention" } else { "full_attention" });
        set(&["layer_types"], kinds.collect());
    } else if let Some(period) = metadata.opt_usize(&key)? {
        set(&["sliding_window_pattern"], json!(period));
    }
    set(&["vocab_size"], json!(vocab_size(file)?));
    set(&["tie_word_embeddings"], json!(!file.contains("output.weight")));
    let has_bias = |module: &str| json!(file.contains(&format!("blk.0.{module}.bias")));
    let qkv = if file.contains("blk.0.attn_q.weight") { "attn_q" } else { "attn_qkv" };
    set(&["attention_bias", "use_bias", "use_qkv_bias", "qkv_bias"], has_bias(qkv));
    set(&["attention_out_bias"], has_bias("attn_output"));
    set(&["mlp_bias"], has_bias("ffn_down"));
    set(&["use_qk_norm", "qk_layernorm"], json!(file.contains("blk.0.attn_q_norm.weight")));
    // Of Falcon there are models with parallel networks only.
    set(&["new_decoder_architecture"], json!(arch == "falcon"));
    set(&["num_ln_in_parallel_attn"], json!(if file.contains("blk.0.attn_norm_2.weight") { 2 } else { 1 }));
    let key = format!("{arch}.expert_weights_norm");
    set(&["norm_topk_prob"], json!(metadata.opt_bool(&key)?.unwrap_or(arch == "qwen3moe")));
    set(&["rope_parameters"], rope_parameters(file, arch)?);
    let size = |key: &str| values.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
    if let (None, Some(hidden), Some(heads)) = (size("head_dim"), size("hidden_size"), size("num_attention_heads")) {
        values.insert("head_dim".into(), json!(hidden / heads));
    }
    if let Some(scalar) = query_scalar(arch, &values) {
        values.insert("query_pre_attn_scalar".into(), json!(scalar));
    }
    Ok(Config::new(&file.path, values))
}

/// Whether llama.cpp knows of a window that no key names, which is Hugging Face's default then.
fn has_unnamed_window(file: &GgufFile, arch: &str) -> Result<bool> {
    let layers = file.metadata.opt_usize(&format!("{arch}.block_count"))?;
    Ok(arch == "gemma2" || (arch == "exaone4" && layers == Some(64)))
}

/// The scalar whose root Gemma 2 and 3 divide scores by. No key has it; for the 27B models it is not the head's size.
fn query_scalar(arch: &str, values: &Map<String, Value>) -> Option<u64> {
    let size = |key: &str| values.get(key)?.as_u64().filter(|n| *n > 0);
    match (arch, size("num_hidden_layers")?) {
        ("gemma2", 46) | ("gemma3", 62) => Some(size("hidden_size")? / size("num_attention_heads")?),
        _ => size("head_dim"),
    }
}

fn vocab_size(file: &GgufFile) -> Result<usize> {
    Ok(file.get("token_embd.weight")?.shape[0])
}

fn rope_parameters(file: &GgufFile, arch: &str) -> Result<Value> {
    let metadata = &file.metadata;
    let key = |name: &str| format!("{arch}.rope.{name}");
    let mut rope = Map::new();
    rope.insert("rope_theta".into(), json!(metadata.opt_f64(&key("freq_base"))?.unwrap_or(10_000.0)));
    let kind = metadata.opt_str(&key("scaling.type"))?.unwrap_or("linear");
    let factor = match metadata.opt_f64(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        // The name before there were types.
        None => metadata.opt_f64(&key("scale_linear"))?,
    };
    if kind != "none" && (kind != "linear" || factor.is_some_and(|factor| factor != 0.0)) {
        rope.insert("rope_type".into(), json!(kind));
        rope.insert("factor".into(), json!(factor));
        // Here the context has the factor in it.
        let context = metadata.opt_usize(&format!("{arch}.context_length"))?;
        if let (Some(context), Some(factor), "linear") = (context, factor, kind) {
            rope.insert("original_max_position_embeddings".into(), json!((context as f64 / factor) as u32));
        }
    }
    for (hf_key, gguf_key) in [("beta_fast", "scaling.yarn_beta_fast"), ("beta_slow", "scaling.yarn_beta_slow")] {
        if let Some(number) = metadata.opt_f64(&key(gguf_key))? {
            rope.insert(hf_key.into(), json!(number));
        }
    }
    let ext_factor = key("scaling.yarn_ext_factor");
    let default = if kind == "yarn" { 1.0 } else { 0.0 };
    // Below zero is the default.
    if let Some(factor) = metadata.opt_f64(&ext_factor)?.filter(|factor| *factor >= 0.0 && *factor != default) {
        return Err(metadata.bad(&ext_factor, &format!("{factor} is not supported, only {default}")));
    }
    // Ministral's `mscale` is what it calls `mscale_all_dim`, too.
    if let Some(scale) = metadata.opt_f64(&key("scaling.yarn_log_multiplier"))?.filter(|_| arch == "mistral3") {
        rope.insert("mscale".into(), json!(scale));
        rope.insert("mscale_all_dim".into(), json!(scale));
    }
    if let Some(beta) = metadata.opt_f64(&format!("{arch}.attention.temperature_scale"))? {
        rope.insert("llama_4_scaling_beta".into(), json!(beta));
    }
    if let Some(dims) = metadata.opt_usize(&key("dimension_count"))? {
        rope.insert("rotary_dim".into(), json!(dims));
    }
    if arch == "gpt-oss" {
        // There is no key for it.
        rope.insert("truncate".into(), json!(false));
    }
    if file.contains("rope_factors_long.weight") {
        rope.insert("rope_type".into(), json!("longrope"));
        for length in ["long", "short"] {
            let factors = file.values(&format!("rope_factors_{length}.weight"))?;
            rope.insert(format!("{length}_factor"), json!(factors));
        }
    }
    if file.contains("rope_freqs.weight") {
        rope.insert("rope_type".into(), json!("factors"));
        rope.insert("factors".into(), json!(file.values("rope_freqs.weight")?));
    }
    // The model's own factor is under either name. llama.cpp multiplies what it computes itself by the first, and with
    // YaRN forgets the second.
    for name in ["scaling.attn_factor", "scaling.yarn_attn_factor"].map(key) {
        let Some(factor) = metadata.opt_f64(&name)? else { continue };
        if matches!(rope.get("rope_type").and_then(Value::as_str), Some("yarn" | "longrope")) {
            rope.insert("attention_factor".into(), json!(factor));
        } else if factor != 1.0 {
            return Err(metadata.bad(&name, &format!("{factor} is supported with yarn and longrope only")));
        }
    }
    Ok(Value::Object(rope))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::{super::GgufMetadata, *};

    /// The window of a golden model, whose file says that it has `window`, or nothing of windows.
    fn window(name: &str, window: Option<u32>) -> Option<Value> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/gguf_architectures/{name}.gguf"));
        let mut bytes = fs::read(golden).unwrap();
        let key = b".attention.sliding_window";
        let at = bytes.windows(key.len() + 1).position(|found| found[..key.len()] == *key && found[key.len()] == 4);
        let end = at.unwrap() + key.len();
        match window {
            Some(window) => bytes[end + 4..end + 8].copy_from_slice(&window.to_le_bytes()),
            None => bytes[end - 6..end].copy_from_slice(b"wander"),
        }
        let file = format!("tokenflow-window-{name}-{window:?}-{}.gguf", std::process::id());
        let path = std::env::temp_dir().join(file);
        fs::write(&path, bytes).unwrap();
        let config = config(&GgufFile::open(&path).unwrap()).unwrap();
        fs::remove_file(path).unwrap();
        // As architectures have it, with a default of Hugging Face's.
        config.or(json!({"sliding_window": 4096})).get("sliding_window").cloned()
    }

    #[test]
    fn rope_scaling_is_read_or_refused() {
        let read = |scaling: Value| {
            let path = Path::new("model.gguf");
            let keys = scaling.as_object().unwrap().iter();
            let keys: Map<_, _> = keys.map(|(key, value)| (format!("llama.rope.{key}"), value.clone())).collect();
            let metadata = GgufMetadata::of_json(path, &keys.into());
            let file = GgufFile { path: path.into(), metadata, parts: Vec::new(), tensors: BTreeMap::new() };
            rope_parameters(&file, "llama").map_err(|error| error.to_string())
        };
        let yarn = |key: &str, number: f64| read(json!({"scaling.type": "yarn", "scaling.factor": 4.5, key: number}));
        for key in ["scaling.attn_factor", "scaling.yarn_attn_factor"] {
            assert_eq!(yarn(key, 1.25).unwrap()["attention_factor"], 1.25);
            let error = read(json!({"scaling.factor": 4.5, key: 1.25})).unwrap_err();
            assert!(error.contains(key) && error.contains("model.gguf"), "{error}");
            assert!(read(json!({"scaling.factor": 4.5, key: 1.0})).is_ok());
        }
        for factor in [-1.0, 1.0] {
            assert!(yarn("scaling.yarn_ext_factor", factor).is_ok());
        }
        let error = yarn("scaling.yarn_ext_factor", 0.5).unwrap_err();
        assert!(error.contains("llama.rope.scaling.yarn_ext_factor: 0.5"), "{error}");
        for key in ["scaling.factor", "scale_linear"] {
            let rope = read(json!({key: 4.5})).unwrap();
            assert_eq!((&rope["rope_type"], &rope["factor"]), (&json!("linear"), &json!(4.5)));
            assert_eq!(read(json!({"scaling.type": "none", key: 4.5})).unwrap().get("rope_type"), None);
        }
        assert_eq!(read(json!({"scaling.type": "linear"})).unwrap().get("rope_type"), None);
    }

    #[test]
    fn sliding_window_of_zero_means_none() {
        for name in ["exaone4", "gemma2_v4", "gpt_oss_v4", "cohere2_v4"] {
            assert_eq!(window(name, Some(9)), Some(json!(9)), "{name}");
            assert_eq!(window(name, Some(0)), None, "{name}");
            // llama.cpp knows Gemma 2's.
            let default = (name == "gemma2_v4").then(|| json!(4096));
            assert_eq!(window(name, None), default, "{name}");
        }
    }
}
