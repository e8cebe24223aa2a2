//! Errors of bad files and requests: each names the fault, and nothing panics or hangs.

use std::{fs, path::Path};

use tokenflow::{
    Error, GenerateConfig, InstructionSet, LoadConfig, Message, TextModel, TokenStream, backend, load_model,
    load_trainable, testing::ScriptedModel,
};

use crate::{TempDir, golden_model, golden_model_with, golden_path};

async fn load_error(path: impl AsRef<Path>) -> Error {
    match load_model(&path, LoadConfig::new()).await {
        Ok(_) => panic!("{} loads", path.as_ref().display()),
        Err(error) => error,
    }
}

/// The error of loading `path`, which must be `InvalidModel` and mention all of `needles`.
async fn invalid(path: impl AsRef<Path>, needles: &[&str]) {
    let error = load_error(path).await;
    assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is not in {text:?}");
    }
}

/// Changes a key of a copied model's `config.json`.
fn set(dir: &TempDir, key: &str, value: serde_json::Value) {
    let path = dir.0.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[tokio::test]
async fn missing_and_empty_paths_are_refused() {
    invalid("/nowhere/at/all", &["/nowhere/at/all", "no such file"]).await;
    let empty = TempDir::new("empty");
    invalid(&empty.0, &["config.json", "cannot be read"]).await;
    let weightless = TempDir::copy_of("mha_tied", "weightless");
    fs::remove_file(weightless.0.join("model.safetensors")).unwrap();
    invalid(&weightless.0, &["holds no *.safetensors"]).await;
    let mute = TempDir::copy_of("mha_tied", "mute");
    fs::remove_file(mute.0.join("tokenizer.json")).unwrap();
    invalid(&mute.0, &["tokenizer.json"]).await;
}

#[tokio::test]
async fn damaged_vocabularies_are_refused() {
    let dir = TempDir::copy_of("opt_v4", "vocabulary");
    for (file, text, needles) in [
        ("merges.txt", "#version: 0.2\na\n", &["merges.txt", "line 2", "\"a\""] as &[_]),
        ("merges.txt", "a b\nlong longer-than-any-token-there-is-in-this-vocabulary\n", &["merges.txt", "line 2"]),
        ("merges.txt", "! zz\n", &["vocab.json", "merges.txt"]),
        ("vocab.json", "{\"a\": -1}", &["vocab.json", "is not an object of tokens"]),
        ("added_tokens.json", "{\"<tool>\": \"last\"}", &["added_tokens.json", "<tool> = \"last\"", "not an id"]),
        ("tokenizer_config.json", "{\"eos_token\": 3}", &["tokenizer_config.json", "eos_token = 3"]),
        ("tokenizer_config.json", "{\"tokenizer_class\": \"LlamaTokenizer\"}", &["tokenizer_class", "GPT2Tokenizer"]),
        ("tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {}}}", &["added_tokens_decoder.x", "not an id"]),
    ] {
        let whole = fs::read(dir.0.join(file)).unwrap();
        fs::write(dir.0.join(file), text).unwrap();
        invalid(&dir.0, needles).await;
        fs::write(dir.0.join(file), whole).unwrap();
    }
}

#[tokio::test]
async fn merge_into_an_unknown_token_is_refused() {
    let dir = TempDir::copy_of("mha_tied", "merges");
    let model = serde_json::json!({"type": "BPE", "vocab": {"aa": 0, "bb": 1}, "merges": [["aa", "bb"]]});
    fs::write(dir.0.join("tokenizer.json"), serde_json::json!({"version": "1.0", "model": model}).to_string()).unwrap();
    invalid(&dir.0, &["tokenizer.json", "is not a tokenizer"]).await;
}

#[tokio::test]
async fn damaged_safetensors_are_refused() {
    let dir = TempDir::copy_of("mha_tied", "damaged");
    let weights = dir.0.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for len in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..len]).unwrap();
        invalid(&dir.0, &["model.safetensors"]).await;
    }
    let mut huge_header = whole.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&weights, huge_header).unwrap();
    invalid(&dir.0, &["model.safetensors"]).await;
    let text = String::from_utf8_lossy(&whole).replace("\"dtype\":\"F32\"", "\"dtype\":\"I32\"");
    if text.len() == whole.len() {
        fs::write(&weights, text).unwrap();
        invalid(&dir.0, &["dtype I32"]).await;
    }
    let mut integers = whole.clone();
    let at = integers.windows(5).position(|window| window == b"\"F32\"").unwrap();
    integers[at..at + 5].copy_from_slice(b"\"I32\"");
    fs::write(&weights, integers).unwrap();
    invalid(&dir.0, &["I32", "model.safetensors"]).await;
}

#[tokio::test]
async fn nonsensical_model_configs_are_refused() {
    for (key, value) in [
        ("hidden_size", serde_json::json!(0)),
        ("hidden_size", serde_json::json!("big")),
        ("hidden_size", serde_json::json!(1_000_000_000_000u64)),
        ("num_attention_heads", serde_json::json!(0)),
        ("num_key_value_heads", serde_json::json!(3.5)),
        ("num_hidden_layers", serde_json::json!(3)),
        ("num_hidden_layers", serde_json::json!(4_000_000_000u32)),
        ("partial_rotary_factor", serde_json::json!(1.5)),
        ("rotary_dim", serde_json::json!(1e300)),
        ("vocab_size", serde_json::json!(7)),
        ("rms_norm_eps", serde_json::json!(-1.0)),
        ("rope_theta", serde_json::json!("x")),
        ("rope_scaling", serde_json::json!({"rope_type": "telepathy", "factor": 2.0})),
        ("hidden_act", serde_json::json!("guess")),
    ] {
        let dir = TempDir::copy_of("mha_tied", "config");
        set(&dir, key, value.clone());
        let error = load_error(&dir.0).await;
        assert!(matches!(error, Error::InvalidModel { .. }), "{key} = {value}: {error:?}");
    }
    // Sizes that no file could have, in models whose matrices are cut into parts.
    for (golden, key) in [
        ("phi3_v4", "num_attention_heads"),
        ("phi3_v4", "intermediate_size"),
        ("gpt_neox_v4", "num_attention_heads"),
        ("gpt2_v4", "n_head"),
        ("mixtral_v4", "num_local_experts"),
        ("gemma3_v4", "head_dim"),
        ("olmo", "hidden_size"),
        ("mlx", "num_attention_heads"),
        ("gptq", "intermediate_size"),
        ("awq", "num_attention_heads"),
        ("fp8", "head_dim"),
        ("mlx_moe", "moe_intermediate_size"),
        ("gpt_oss_v4", "intermediate_size"),
        ("gpt_oss_v5", "num_local_experts"),
        ("mxfp4_moe", "num_local_experts"),
        ("mxfp4_moe", "intermediate_size"),
        ("mlx_mxfp4_moe", "intermediate_size"),
        ("opt_350m_v4", "word_embed_proj_dim"),
        ("opt_v4", "max_position_embeddings"),
        ("bloom_v4", "n_head"),
        ("falcon_40b_v4", "num_attention_heads"),
        ("falcon_40b_v4", "num_kv_heads"),
        ("granitemoe_v4", "num_local_experts"),
        ("granitemoe_v4", "intermediate_size"),
        ("glm4_moe_v4", "n_routed_experts"),
        ("glm4_moe_v4", "n_shared_experts"),
        ("glm4_moe_v4", "topk_group"),
    ] {
        let dir = TempDir::copy_of(golden, "absurd");
        set(&dir, key, 4_000_000_000u32.into());
        let error = load_error(&dir.0).await;
        assert!(matches!(error, Error::InvalidModel { .. }), "{golden}: {key}: {error:?}");
    }
    for key in ["swiglu_limit", "swiglu_alpha"] {
        let dir = TempDir::copy_of("gpt_oss_v4", "swiglu");
        set(&dir, key, (-1).into());
        invalid(&dir.0, &["config.json", key, "-1"]).await;
    }
    for kinds in [serde_json::json!(["full_attention"]), serde_json::json!(["full_attention", "psychic", "psychic"])] {
        let dir = TempDir::copy_of("gemma2_v4", "layers");
        set(&dir, "layer_types", kinds);
        invalid(&dir.0, &["config.json", "layer_types"]).await;
    }
    let dir = TempDir::copy_of("mha_tied", "architecture");
    set(&dir, "model_type", "hyena".into());
    match load_error(&dir.0).await {
        Error::UnsupportedArchitecture { architecture, supported } => {
            assert_eq!(architecture, "hyena");
            assert!(supported.contains(&"llama".to_owned()));
        }
        other => panic!("{other:?}"),
    }
    fs::write(dir.0.join("config.json"), "{").unwrap();
    invalid(&dir.0, &["config.json"]).await;
}

#[tokio::test]
async fn shard_index_cannot_leave_its_directory() {
    let dir = TempDir::copy_of("mha_tied", "index");
    let index = serde_json::json!({"weight_map": {"a": "../model.safetensors"}});
    fs::write(dir.0.join("model.safetensors.index.json"), index.to_string()).unwrap();
    invalid(&dir.0, &["index.json", "../model.safetensors"]).await;
}

#[tokio::test]
async fn damaged_gguf_files_are_refused() {
    let dir = TempDir::new("gguf");
    let path = dir.0.join("model.gguf");
    let whole = fs::read(golden_path("gguf/tiny-q8_0.gguf")).unwrap();
    for len in (0..whole.len()).step_by(whole.len() / 60).chain(0..64) {
        fs::write(&path, &whole[..len]).unwrap();
        invalid(&path, &["model.gguf"]).await;
    }
    // Any byte of the header may be wrong; most of that is noticed, and none of it does harm.
    for at in (4..4096).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xFF;
        fs::write(&path, damaged).unwrap();
        if let Ok(model) = load_model(&path, LoadConfig::new()).await {
            let _ = model.generate("a", GenerateConfig::new().max_tokens(1)).text().await;
        }
    }
}

#[tokio::test]
async fn huge_gguf_arrays_are_refused() {
    let dir = TempDir::new("gguf");
    let path = dir.0.join("model.gguf");
    // A key "a" with an array of bytes, as long as a file that takes no room.
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    let len = 1u64 << 36;
    [0, 1, 1].iter().for_each(|count: &u64| bytes.extend(count.to_le_bytes()));
    bytes.extend(*b"a\x09\0\0\0\0\0\0\0");
    bytes.extend(len.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(len + 100).unwrap();
    invalid(&path, &["model.gguf", "a: claims 68719476736 array elements"]).await;
}

#[tokio::test]
async fn gguf_blocks_along_another_dimension_are_refused() {
    let mut bytes = fs::read(golden_path("gguf/tiny-q8_0.gguf")).unwrap();
    let mut set = |name: &str, skip: usize, value: &[u8]| {
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + name.len() + skip;
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    // After a key is the type of its value, after a tensor's name the number of its dimensions.
    set("llama.feed_forward_length", 4, &1u32.to_le_bytes());
    for name in ["ffn_gate", "ffn_up", "ffn_down"] {
        set(&format!("blk.0.{name}.weight"), 4, &[64u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    }
    let dir = TempDir::new("blocks");
    let path = dir.0.join("model.gguf");
    fs::write(&path, bytes).unwrap();
    invalid(&path, &["blk.0.ffn_down.weight", "[1, 64]", "[64, 1]"]).await;
}

#[tokio::test]
async fn impossible_load_configs_are_refused() {
    let foreign = if cfg!(target_arch = "aarch64") { InstructionSet::Avx2 } else { InstructionSet::Neon };
    for (config, name) in [
        (LoadConfig::new().context_len(0), "context_len"),
        (LoadConfig::new().context_len(1 << 40), "context_len"),
        (LoadConfig::new().parallel_slots(0), "parallel_slots"),
        (LoadConfig::new().gpu_layers(1), "gpu_layers"),
        (LoadConfig::new().kv_cache_bytes(1), "kv_cache_bytes"),
        (LoadConfig::new().kv_cache_bytes(usize::MAX), "kv_cache_bytes"),
        (LoadConfig::new().queue_limit(0), "queue_limit"),
        (LoadConfig::new().stream_buffer(usize::MAX), "stream_buffer"),
        (LoadConfig::new().threads(0), "threads"),
        (LoadConfig::new().instruction_set(foreign), "instruction_set"),
        (LoadConfig::new().threads(1 << 20), "threads"),
    ] {
        match load_model(golden_path("mha_tied"), config).await.err() {
            Some(Error::InvalidConfig { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    load_model(golden_path("mha_tied"), LoadConfig::new().gpu_layers(0)).await.unwrap();
    let endless = LoadConfig::new().kv_cache_bytes(usize::MAX);
    let scripted = ScriptedModel::new(|_| "a".into()).load_config(endless).build().err();
    assert!(scripted.unwrap().to_string().starts_with(&format!("invalid kv_cache_bytes: {}", usize::MAX)));
}

#[tokio::test]
async fn largest_allowed_settings_work() {
    let greatest = LoadConfig::new().parallel_slots(usize::MAX).max_batched_tokens(usize::MAX);
    let greatest = greatest.prefix_cache_tokens(usize::MAX).queue_limit(1 << 20).stream_buffer(1 << 20);
    let config = GenerateConfig::new().max_tokens(usize::MAX).top_k(usize::MAX).temperature(1.0).seed(7);
    let config = config.logprobs(128).prompt_lookup(64).deadline(std::time::Duration::MAX);
    let model = golden_model_with("mha_tied", greatest.clone()).await;
    let all = model.batch_generate(&["Hello"; 3], config.clone()).await.unwrap();
    assert!(all.iter().all(|one| one.err.is_none() && one.tokens == all[0].tokens));
    let (_sender, _stream) = TokenStream::channel(usize::MAX, &config);
    // The bookkeeping of a cache is no larger than its used part.
    let greatest = greatest.kv_cache_bytes(1 << 37);
    let model = ScriptedModel::new(|_| "word ".repeat(9)).load_config(greatest).build().unwrap();
    assert_eq!(model.generate("a", config.temperature(0.0)).text().await.unwrap().len(), 45);
}

#[tokio::test]
async fn unknown_and_unavailable_backends_are_errors() {
    let load = async |name: &str| load_model(golden_path("mha_tied"), LoadConfig::new().backend(name)).await.err();
    assert!(matches!(load("abacus").await, Some(Error::BackendNotFound { name, .. }) if name == "abacus"));
    for name in ["cuda", "metal"] {
        if !backend::get(name).unwrap().available() {
            assert!(matches!(load(name).await, Some(Error::BackendUnavailable { .. })));
        }
    }
    assert!(backend::list().starts_with(&["cpu".to_owned(), "cuda".to_owned(), "metal".to_owned()]));
    assert!(backend::default_backend().is_ok());
}

#[tokio::test]
async fn untrainable_backends_are_refused() {
    struct Reader;
    #[async_trait::async_trait]
    impl backend::Backend for Reader {
        fn name(&self) -> &str {
            "reader"
        }

        fn available(&self) -> bool {
            true
        }

        async fn load_model(&self, path: &Path, config: &LoadConfig) -> tokenflow::Result<Box<dyn TextModel>> {
            load_model(path, config.clone()).await
        }
    }
    let trainable = backend::Backend::load_trainable(&Reader, &golden_path("mha_tied"), &LoadConfig::new()).await;
    assert!(matches!(trainable.err(), Some(Error::NotTrainable { reason }) if reason.contains("reader")));
    let missing = load_trainable(golden_path("no such model"), LoadConfig::new()).await;
    assert!(matches!(missing.err(), Some(Error::InvalidModel { .. })));
}

#[tokio::test]
async fn invalid_requests_are_refused() {
    let model = golden_model("mha_tied").await;
    let refused = async |config: GenerateConfig, name: &str| {
        let mut stream = model.generate("a", config.clone());
        while futures::StreamExt::next(&mut stream).await.is_some() {}
        assert!(
            matches!(stream.err(), Some(Error::InvalidConfig { field, .. }) if *field == name),
            "{:?}",
            stream.err()
        );
        assert!(matches!(model.err(), Some(Error::InvalidConfig { .. })));
        assert!(model.batch_generate(&["a"], config).await.is_err());
    };
    refused(GenerateConfig::new().temperature(f32::NAN), "temperature").await;
    refused(GenerateConfig::new().max_tokens(0), "max_tokens").await;
    refused(GenerateConfig::new().return_logits(true), "return_logits").await;
    refused(GenerateConfig::new().stop_tokens(vec![u32::MAX]), "stop_tokens").await;
    let chat = model.chat(&[], GenerateConfig::new()).text().await;
    assert!(matches!(chat, Err(Error::NoChatTemplate | Error::InvalidConfig { .. })));
    for (config, named) in [
        (GenerateConfig::new().stop(vec!["x".into()]), r#"invalid stop: ["x"]"#),
        (GenerateConfig::new().stop_tokens(vec![7]), "invalid stop_tokens: [7]"),
    ] {
        let error = model.classify(&["a"], config).await.unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
    }
}

#[tokio::test]
async fn one_failing_prompt_leaves_its_batch_alone() {
    let config = LoadConfig::new().context_len(16);
    let model = golden_model_with("mha_tied", config).await;
    let long = "much too long ".repeat(50);
    let results = model.batch_generate(&["a", &long, "b"], GenerateConfig::new().max_tokens(2)).await.unwrap();
    assert!(results[0].err.is_none() && results[2].err.is_none());
    assert!(matches!(results[1].err, Some(Error::PromptTooLong { limit: 16, .. })));
    let classified = model.classify(&["a", &long], GenerateConfig::new()).await;
    assert!(matches!(classified, Err(Error::PromptTooLong { .. })));
}

#[tokio::test]
async fn failing_and_endless_templates_are_errors() {
    let chat = async |template: &str| {
        let config = LoadConfig::new().chat_template(template);
        let model = golden_model_with("mha_tied", config).await;
        model.chat(&[Message::user("a")], GenerateConfig::new().max_tokens(1)).text().await
    };
    let refused = chat("{{ raise_exception('only even turns') }}").await;
    assert!(matches!(refused, Err(Error::ChatTemplate { reason }) if reason == "only even turns"));
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    assert!(matches!(chat(endless).await, Err(Error::ChatTemplate { .. })));
    let broken = LoadConfig::new().chat_template("{% if %}");
    let error = load_model(golden_path("mha_tied"), broken).await.err();
    assert!(matches!(error, Some(Error::InvalidConfig { field: "chat_template", .. })), "{error:?}");
}

#[tokio::test]
async fn damaged_quantized_directories_are_refused() {
    let rewritten = |golden: &str, name: &str, from: &str, to: &str| {
        let dir = TempDir::copy_of(golden, name);
        let path = dir.0.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
        assert!(header.contains(from), "{header}");
        let header = header.replacen(from, to, 1);
        let rest = &bytes[8 + len..];
        fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), rest].concat()).unwrap();
        dir
    };
    let dir = rewritten("mlx", "mlx-scales", "q_proj.scales", "q_proj.scalez");
    invalid(&dir.0, &["model.layers.0.self_attn.q_proj.scales", "missing"]).await;
    let dir = rewritten("mlx", "mlx-biases", "q_proj.biases", "q_proj.biasez");
    invalid(&dir.0, &["model.layers.0.self_attn.q_proj", "affine"]).await;
    let dir = rewritten("gptq", "gptq-zeros", "q_proj.qzeros", "q_proj.qzeroz");
    invalid(&dir.0, &["model.layers.0.self_attn.q_proj.qzeros", "missing"]).await;
    let dir = rewritten("fp8", "fp8-scale", "q_proj.weight_scale_inv", "q_proj.weight_scale_xyz");
    invalid(&dir.0, &["model.layers.0.self_attn.q_proj", "weight_scale_inv"]).await;
    let dir = rewritten("mxfp4_moe", "mxfp4-scales", "gate_up_proj_scales", "gate_up_proj_scalez");
    invalid(&dir.0, &["model.layers.0.mlp.experts.gate_up_proj_scales", "missing"]).await;
    let dir = rewritten("mxfp4_moe", "mxfp4-blocks", "down_proj_blocks", "down_proj_blockz");
    invalid(&dir.0, &["model.layers.0.mlp.experts.down_proj", "missing"]).await;
    let dir = rewritten("mxfp4_moe", "mxfp4-sinks", "self_attn.sinks", "self_attn.sinkz");
    invalid(&dir.0, &["model.layers.0.self_attn.sinks", "missing"]).await;
    // As NVFP4 stores them: twice the scales.
    let dir = rewritten("mlx_mxfp4", "mlx-nvfp4", "\"shape\":[128,4]", "\"shape\":[64,8]");
    invalid(&dir.0, &["model.layers.0", "groups of 16", "affine and mxfp4"]).await;
    // As AWQ's gemv stores them: as many numbers, in another order.
    let dir = rewritten("awq", "awq-gemv", "\"shape\":[128,16]", "\"shape\":[16,128]");
    invalid(&dir.0, &["model.layers.0", "qweight", "[16, 128]"]).await;
    let dir = rewritten("awq", "awq-scales", "\"shape\":[2,128]", "\"shape\":[128,2]");
    invalid(&dir.0, &["model.layers.0", "scales", "[128, 2]"]).await;
    let dir = rewritten("fp8", "fp8-shape", "\"shape\":[128,128]", "\"shape\":[64,256]");
    invalid(&dir.0, &["model.layers.0", "weight", "[64, 256]"]).await;
    for (golden, key, value) in [
        ("awq", "version", serde_json::json!("gemv")),
        ("gptq", "bits", serde_json::json!(3)),
        ("gptq", "group_size", serde_json::json!(0)),
        ("gptq", "group_size", serde_json::json!(48)),
        ("awq", "quant_method", serde_json::json!("magic")),
    ] {
        let dir = TempDir::copy_of(golden, "quantization");
        let config = crate::read_json(&format!("{golden}/config.json"));
        let mut quantization = config["quantization_config"].clone();
        quantization[key] = value.clone();
        set(&dir, "quantization_config", quantization);
        invalid(&dir.0, &[&value.to_string()]).await;
    }
}

#[tokio::test]
async fn incomplete_split_gguf_is_refused() {
    let dir = TempDir::new("parts");
    let part = |number: u32| format!("granite_v5-0000{number}-of-00004.gguf");
    for number in [1, 2, 4] {
        fs::copy(golden_path(&format!("gguf_architectures/{}", part(number))), dir.0.join(part(number))).unwrap();
    }
    invalid(&dir.0.join(part(1)), &[&part(3)]).await;
    invalid(&dir.0.join(part(2)), &["split.no = 1"]).await;
    fs::rename(dir.0.join(part(1)), dir.0.join("renamed.gguf")).unwrap();
    invalid(&dir.0.join("renamed.gguf"), &["split.count = 4", "-00001-of-00004.gguf"]).await;
}

#[tokio::test]
async fn callback_panic_is_an_error_with_its_message() {
    let config = LoadConfig::new().progress(|at| panic!("no bar for layer {}", at.layers));
    let error = load_model(golden_path("gqa_llama3"), config).await.err().unwrap();
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
    assert!(error.to_string().contains("no bar for layer 1"), "{error}");
}
