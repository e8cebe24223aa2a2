//! How likely a text is, as llama.cpp and transformers find it.

use std::{collections::HashMap, fs, fs::File, path::Path};

use candle_core::{
    DType, Device, Tensor,
    quantized::gguf_file::{Content, Value},
    safetensors,
};
use serde_json::json;
use tokenflow::{GenerateConfig, KvCacheType, LoadConfig, TextModel, load_model};

use crate::{TempDir, golden::floats, golden_path, models, read_json};

/// The perplexity of all passages of the text together.
async fn perplexity(model: &dyn TextModel) -> f64 {
    let text = fs::read_to_string(golden_path("perplexity/text.txt")).unwrap();
    let passages: Vec<&str> = text.split("\n---\n").collect();
    let expected = read_json("perplexity/expected.json");
    let (mut sum, mut count) = (0.0, 0);
    let scored = model.score(&passages, GenerateConfig::new()).await.unwrap();
    for (tokens, expected) in scored.iter().zip(floats(&expected["tokens"])) {
        assert_eq!(tokens.len(), expected as usize);
        let logprobs: Vec<_> =
            tokens.iter().filter_map(|token| token.logprobs.as_ref()).map(|found| found.logprob).collect();
        assert_eq!(logprobs.len(), tokens.len() - 1);
        sum -= logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>();
        count += logprobs.len();
    }
    (sum / count as f64).exp()
}

fn expected(of: &str) -> f64 {
    read_json("perplexity/expected.json")["perplexity"][of].as_f64().unwrap()
}

#[tokio::test]
async fn gguf_perplexity_matches_llama_cpp() {
    let path = models::smollm2_gguf().await.unwrap();
    for config in [LoadConfig::new(), LoadConfig::new().kv_cache_type(KvCacheType::Int8)] {
        let model = load_model(&path, config.clone()).await.unwrap();
        let (ours, theirs) = (perplexity(&*model).await, expected("llama.cpp"));
        println!("perplexity {ours}, of llama.cpp {theirs}");
        assert!((ours / theirs - 1.0).abs() < 0.005, "{ours} instead of {theirs}: {config:?}");
    }
}

#[tokio::test]
async fn directory_perplexity_matches_transformers() {
    let dir = TempDir::new("perplexity");
    write_directory(&models::smollm2_gguf().await.unwrap(), &dir.0);
    let model = load_model(&dir.0, LoadConfig::new()).await.unwrap();
    let ours = perplexity(&*model).await;
    for of in ["float32", "bfloat16", "bfloat16 weights"] {
        let theirs = expected(of);
        println!("perplexity {ours}, of transformers in {of} {theirs}");
        assert!((ours / theirs - 1.0).abs() < 0.005, "{ours} instead of {theirs} in {of}");
    }
}

/// Writes a GGUF file of SmolLM2 as a Hugging Face directory in bfloat16.
fn write_directory(gguf: &Path, dir: &Path) {
    let mut file = File::open(gguf).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        let tensor = if name.contains("attn_q.") || name.contains("attn_k.") { halves_apart(&tensor) } else { tensor };
        tensors.insert(hub_name(name), tensor.to_dtype(DType::BF16).unwrap());
    }
    safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer(&content).to_string()).unwrap();
}

/// GGUF files of llamas have the two numbers of a rotation side by side, directories half a head of 64 apart.
fn halves_apart(rows: &Tensor) -> Tensor {
    let (len, columns) = rows.dims2().unwrap();
    let heads = rows.reshape((len / 64, 32, 2, columns)).unwrap();
    heads.transpose(1, 2).unwrap().contiguous().unwrap().reshape((len, columns)).unwrap()
}

fn hub_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let layer = |part: &str| format!("model.layers.{}.{part}.weight", parts[1]);
    match parts.as_slice() {
        ["token_embd", _] => "model.embed_tokens.weight".into(),
        ["output_norm", _] => "model.norm.weight".into(),
        ["blk", _, "attn_norm", _] => layer("input_layernorm"),
        ["blk", _, "ffn_norm", _] => layer("post_attention_layernorm"),
        ["blk", _, "attn_output", _] => layer("self_attn.o_proj"),
        ["blk", _, part, _] => match part.split_once('_').unwrap() {
            ("attn", which) => layer(&format!("self_attn.{which}_proj")),
            (_, which) => layer(&format!("mlp.{which}_proj")),
        },
        _ => panic!("a tensor {name}"),
    }
}

fn tokenizer(content: &Content) -> serde_json::Value {
    let strings = |key: &str| -> Vec<String> {
        let values = content.metadata[key].to_vec().unwrap();
        values.iter().map(|value| value.to_string().unwrap().clone()).collect()
    };
    let tokens = strings("tokenizer.ggml.tokens");
    let is_control = |kind: &Value| matches!(kind, Value::I32(3));
    let kinds = content.metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
    let added = tokens.iter().zip(kinds).enumerate().filter(|(_, (_, kind))| is_control(kind));
    let added = added.map(|(id, (token, _))| {
        json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    });
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null, "post_processor": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [digits, bytes] }, "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": strings("tokenizer.ggml.merges") },
    })
}
