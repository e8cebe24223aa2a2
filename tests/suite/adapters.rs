//! Adapters against PEFT and MLX-LM, and beside each other.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use futures::StreamExt;
use serde_json::{Value, json};
use tokenflow::{
    AdapterFile, Error, GenerateConfig, KvCacheType, LoadConfig, LoraTensors, TextModel, merge_adapter,
    testing::ScriptedModel,
};

use crate::{
    TempDir,
    golden::{check, difference, floats},
    golden_model, golden_model_with, golden_path, read_json,
};

/// All adapters of `tests/golden/adapters`.
pub fn adapters() -> Vec<String> {
    let entries = golden_path("adapters").read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

/// The directory of an adapter, its expected figures, and its model.
fn adapter(name: &str) -> (PathBuf, Value, String) {
    let expected = read_json(&format!("adapters/{name}/expected.json"));
    let model = expected["model"].as_str().unwrap().to_owned();
    (golden_path("adapters").join(name), expected, model)
}

async fn adapted(model: &str, adapter: &Path) -> Box<dyn TextModel> {
    golden_model_with(model, LoadConfig::new().kv_cache_type(KvCacheType::F32).adapter_path(adapter)).await
}

async fn logits(model: &dyn TextModel, text: &str, config: GenerateConfig) -> Vec<f32> {
    model.classify(&[text], config.return_logits(true)).await.unwrap().remove(0).logits.unwrap()
}

#[tokio::test]
async fn logits_and_tokens_match_peft_and_mlx_lm() {
    for name in adapters() {
        let (path, expected, model) = adapter(&name);
        let prompts = &expected["prompts"];
        let loaded = adapted(&model, &path).await;
        check(&name, &*loaded, prompts, 1e-4, 0.0).await;
        let plain = golden_model(&model).await;
        let without = logits(&*plain, prompts[0]["text"].as_str().unwrap(), GenerateConfig::new()).await;
        assert!(difference(&without, &floats(&prompts[0]["logits"])) > 1e-2, "{name} changes nothing");
    }
}

#[tokio::test]
async fn gguf_files_accept_adapters_of_their_models() {
    let mut checked = 0;
    for name in adapters() {
        let (path, expected, model) = adapter(&name);
        let file = format!("gguf_architectures/{model}.gguf");
        if golden_path(&file).exists() {
            check(&name, &*adapted(&file, &path).await, &expected["prompts"], 1e-4, 0.0).await;
            checked += 1;
        }
    }
    assert!(checked > 5);
}

#[tokio::test]
async fn quantized_weights_accept_adapters() {
    for name in ["q_v", "dora_bias", "fused_dora"] {
        let (path, expected, model) = adapter(name);
        let config = LoadConfig::new().quantize(tokenflow::Quantize::Int8).adapter_path(path);
        let model = golden_model_with(&model, config).await;
        let prompt = &expected["prompts"][0];
        let ours = logits(&*model, prompt["text"].as_str().unwrap(), GenerateConfig::new()).await;
        let difference = difference(&ours, &floats(&prompt["logits"]));
        assert!(difference < 5e-2, "{name}: logits differ by {difference}");
    }
}

#[tokio::test]
async fn requests_choose_adapters_by_name() {
    let model = golden_model("phi3_v4").await;
    let text = "The dog";
    let plain = logits(&*model, text, GenerateConfig::new()).await;
    for name in ["fused_dora", "fused"] {
        model.load_adapter(name, &golden_path("adapters").join(name)).await.unwrap();
    }
    assert_eq!(model.adapters(), ["fused", "fused_dora"]);
    for name in ["fused", "fused_dora"] {
        let ours = logits(&*model, text, GenerateConfig::new().adapter(name)).await;
        let theirs = floats(&adapter(name).1["prompts"][0]["logits"]);
        assert!(difference(&ours, &theirs) < 1e-4, "{name}");
    }
    assert_eq!(logits(&*model, text, GenerateConfig::new()).await, plain, "others do without");
    model.unload_adapter("fused").await.unwrap();
    assert_eq!(model.adapters(), ["fused_dora"]);
    let unknown = |error: &Error| {
        let text = error.to_string();
        assert!(matches!(error, Error::InvalidConfig { field: "adapter", .. }), "{error:?}");
        assert!(text.contains("\"fused\"") && text.contains("fused_dora"), "{text}");
    };
    let mut stream = model.generate(text, GenerateConfig::new().adapter("fused"));
    assert!(stream.next().await.is_none());
    unknown(stream.err().unwrap());
    unknown(&model.classify(&[text], GenerateConfig::new().adapter("fused")).await.unwrap_err());
    unknown(&model.batch_generate(&[text], GenerateConfig::new().adapter("fused")).await.unwrap_err());
    unknown(&model.unload_adapter("fused").await.unwrap_err());
    model.close().await.unwrap();
    assert!(matches!(model.load_adapter("fused", &golden_path("adapters/fused")).await, Err(Error::Closed)));
    assert!(matches!(model.unload_adapter("fused_dora").await, Err(Error::Closed)));
    let late = model.classify(&[text], GenerateConfig::new().adapter("fused_dora")).await;
    assert!(matches!(late, Err(Error::Closed)));
}

#[tokio::test]
async fn base_model_is_reachable_beside_a_default_adapter() {
    let (path, expected, name) = adapter("q_v");
    let (plain, adapted) = (golden_model(&name).await, adapted(&name, &path).await);
    let text = expected["prompts"][1]["text"].as_str().unwrap();
    let base = || GenerateConfig::new().base_model(true).max_tokens(8);
    let plain_config = || GenerateConfig::new().max_tokens(8);
    let with = logits(&*adapted, text, GenerateConfig::new()).await;
    let without = logits(&*plain, text, GenerateConfig::new()).await;
    assert_ne!(with, without);
    // Alternating, so that a shared prefix cache would show.
    for _ in 0..2 {
        assert_eq!(logits(&*adapted, text, base()).await, without);
        assert_eq!(logits(&*adapted, text, GenerateConfig::new()).await, with);
    }
    assert_eq!(
        adapted.generate(text, base()).collect::<Vec<_>>().await,
        plain.generate(text, plain_config()).collect::<Vec<_>>().await
    );
    let batch = adapted.batch_generate(&[text], base()).await.unwrap().remove(0);
    assert_eq!(batch.tokens, plain.batch_generate(&[text], plain_config()).await.unwrap().remove(0).tokens);
    assert_eq!(adapted.score(&[text], base()).await.unwrap(), plain.score(&[text], plain_config()).await.unwrap());
    let keys = async |model: &dyn TextModel, config: GenerateConfig| {
        model.as_attention_inspector().unwrap().inspect_attention(text, config).await.unwrap().queries
    };
    assert_eq!(keys(&*adapted, base()).await, keys(&*plain, plain_config()).await);
    assert_ne!(keys(&*adapted, plain_config()).await, keys(&*plain, plain_config()).await);
}

#[tokio::test]
async fn empty_adapter_names_are_refused() {
    let field = |error: Error| match error {
        Error::InvalidConfig { field, .. } => field,
        other => panic!("{other:?}"),
    };
    let model = golden_model("gqa_llama3").await;
    let path = golden_path("adapters/q_v");
    assert_eq!(field(model.load_adapter("", &path).await.unwrap_err()), "adapter");
    assert_eq!(field(model.unload_adapter("").await.unwrap_err()), "adapter");
    assert!(model.adapters().is_empty());
    model.load_adapter("a", &path).await.unwrap();
    let inspector = model.as_attention_inspector().unwrap();
    for (config, at_fault) in [
        (GenerateConfig::new().adapter(""), "adapter"),
        (GenerateConfig::new().adapter("a").base_model(true), "base_model"),
    ] {
        let stream = model.generate("The dog", config.clone());
        assert_eq!(field(stream.err().cloned().unwrap()), at_fault);
        assert_eq!(field(model.classify(&["The dog"], config.clone()).await.unwrap_err()), at_fault);
        assert_eq!(field(model.score(&["The dog"], config.clone()).await.unwrap_err()), at_fault);
        assert_eq!(field(model.batch_generate(&["The dog"], config.clone()).await.unwrap_err()), at_fault);
        assert_eq!(field(inspector.inspect("The dog", config.into()).await.unwrap_err()), at_fault);
    }
}

#[tokio::test]
async fn running_request_keeps_its_adapter() {
    let model = golden_model_with("gqa_llama3", LoadConfig::new().stream_buffer(1)).await;
    let config = || GenerateConfig::new().adapter("a").max_tokens(40).stop_tokens(Vec::new());
    model.load_adapter("a", &golden_path("adapters/q_v")).await.unwrap();
    let expected: Vec<_> = model.generate("The dog", config()).collect().await;
    // An unread stream pauses, so most of its tokens are still to come.
    let mut stream = model.generate("The dog", config());
    let mut tokens = vec![stream.next().await.unwrap()];
    model.unload_adapter("a").await.unwrap();
    tokens.extend(stream.by_ref().collect::<Vec<_>>().await);
    assert!(stream.err().is_none());
    assert_eq!(tokens, expected);
}

#[tokio::test]
async fn replaced_adapter_shares_no_prefix_cache() {
    let model = golden_model("gqa_llama3").await;
    let (path, expected, _) = adapter("q_v");
    let text = expected["prompts"][1]["text"].as_str().unwrap();
    let mut other = AdapterFile::read(&path).unwrap();
    other.modules.values_mut().for_each(|tensors| tensors.scale *= -1.0);
    let dir = TempDir::new("other-adapter");
    other.write(&dir.0).unwrap();
    let config = || GenerateConfig::new().adapter("a");
    model.load_adapter("a", &dir.0).await.unwrap();
    let first = logits(&*model, text, config()).await;
    model.load_adapter("a", &path).await.unwrap();
    assert_eq!(model.adapters(), ["a"]);
    let second = logits(&*model, text, config()).await;
    assert!(difference(&second, &floats(&expected["prompts"][1]["logits"])) < 1e-4);
    assert_ne!(first, second);
    assert_eq!(model.metrics().cached_prompt_tokens, 0);
    assert_eq!(logits(&*model, text, config()).await, second);
    assert!(model.metrics().cached_prompt_tokens > 0);
}

#[tokio::test]
async fn scripted_model_refuses_adapters() {
    let model = ScriptedModel::new(|_| String::new()).build().unwrap();
    let error = model.load_adapter("a", &golden_path("adapters/q_v")).await.unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { field: "adapter", .. }), "{error:?}");
}

#[tokio::test]
async fn adapter_files_round_trip() {
    for name in adapters() {
        let (path, expected, model) = adapter(&name);
        let read = AdapterFile::read(&path).unwrap();
        let dir = TempDir::new("written-adapter");
        // Over existing files.
        AdapterFile::new(BTreeMap::new()).write(dir.0.join("new")).unwrap();
        read.write(dir.0.join("new")).unwrap();
        let again = AdapterFile::read(dir.0.join("new")).unwrap();
        assert_eq!(again.base_model, read.base_model);
        for (module, tensors) in &read.modules {
            let LoraTensors { scale, .. } = again.modules[module];
            assert!((scale - tensors.scale).abs() < 1e-9, "{name}: {module}");
            let again = &again.modules[module];
            assert_eq!((&again.a, &again.b, &again.magnitude), (&tensors.a, &tensors.b, &tensors.magnitude));
        }
        assert_eq!(fs::read_dir(dir.0.join("new")).unwrap().count(), 2);
        check(&name, &*adapted(&model, &dir.0.join("new")).await, &expected["prompts"], 1e-4, 0.0).await;
    }
}

#[test]
fn concurrent_writers_leave_a_whole_adapter() {
    let adapter = AdapterFile::read(golden_path("adapters/q_v")).unwrap();
    let dir = TempDir::new("written-together");
    std::thread::scope(|scope| {
        let write = || (0..20).try_for_each(|_| adapter.write(&dir.0));
        let writers: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
    });
    assert_eq!(AdapterFile::read(&dir.0).unwrap().modules, adapter.modules);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 2);
}

#[test]
fn failed_write_leaves_no_temporary_files() {
    let adapter = AdapterFile::read(golden_path("adapters/q_v")).unwrap();
    let dir = TempDir::new("not-written");
    fs::create_dir(dir.0.join("adapter_model.safetensors")).unwrap();
    assert!(matches!(adapter.write(&dir.0), Err(Error::InvalidModel { .. })));
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
}

#[tokio::test]
async fn merged_models_match_adapted_models() {
    for name in adapters().iter().filter(|name| *name != "tied_head") {
        let (path, expected, model) = adapter(name);
        let dir = TempDir::new("merged");
        let out = dir.0.join("out");
        merge_adapter(golden_path(&model), &path, &out).await.unwrap();
        let merged = tokenflow::load_model(&out, LoadConfig::new()).await.unwrap();
        let prompt = &expected["prompts"][0];
        let ours = logits(&*merged, prompt["text"].as_str().unwrap(), GenerateConfig::new()).await;
        let difference = difference(&ours, &floats(&prompt["logits"]));
        let exact = ["gqa_llama3", "qwen3", "mha_tied"].contains(&model.as_str());
        assert!(difference < if exact { 1e-4 } else { 5e-2 }, "{name}: logits differ by {difference}");
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "nothing else is left");
        let error = merge_adapter(golden_path(&model), &path, &out).await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { field: "out_dir", .. }), "{error:?}");
    }
}

#[tokio::test]
async fn unmergeable_adapters_are_refused() {
    let dir = TempDir::new("not-merged");
    let (out, q_v) = (dir.0.join("out"), golden_path("adapters/q_v"));
    for (model, adapter, needle) in [
        ("helium_v4", "tied_head", "lm_head is the embedding, too"),
        ("gguf/tiny-f32.gguf", "q_v", "GGUF"),
        ("mlx", "q_v", "quantized"),
        ("gptq", "q_v", "quantized"),
        ("mha_tied", "q_v", "model.layers.0.self_attn.q_proj"),
    ] {
        let adapter = q_v.with_file_name(adapter);
        let error = merge_adapter(golden_path(model), adapter, &out).await.unwrap_err();
        assert!(error.to_string().contains(needle), "{model}: {error}");
        assert!(!out.exists());
    }
}

#[tokio::test]
async fn separate_expert_modules_accept_adapters() {
    let module = |expert: usize, name: &str| format!("model.layers.1.block_sparse_moe.experts.{expert}.{name}");
    let noise = |len: usize, seed: usize| (0..len).map(|i| ((i * 7919 + seed) % 1009) as f32 / 900.0 - 0.5).collect();
    let change = |(expert, name, outputs, inputs): (usize, &str, usize, usize)| {
        let tensors = LoraTensors::new(2, 1.5, noise(2 * inputs, 1), noise(2 * outputs, 2)).unwrap();
        (module(expert, name), tensors)
    };
    let changed = (0..5).map(|expert| if expert % 2 == 0 { (expert, "w1", 48, 32) } else { (expert, "w2", 32, 48) });
    let dir = TempDir::new("experts");
    AdapterFile::new(changed.map(change).collect()).write(dir.0.join("adapter")).unwrap();
    merge_adapter(golden_path("mixtral_v4"), dir.0.join("adapter"), dir.0.join("merged")).await.unwrap();
    let merged = tokenflow::load_model(dir.0.join("merged"), LoadConfig::new()).await.unwrap();
    let adapted = adapted("mixtral_v4", &dir.0.join("adapter")).await;
    let plain = golden_model("mixtral_v4").await;
    for text in ["The dog", "Once upon a time", "12 months and 52 weeks"] {
        let ours = logits(&*adapted, text, GenerateConfig::new()).await;
        let rounded = difference(&ours, &logits(&*merged, text, GenerateConfig::new()).await);
        let without = difference(&ours, &logits(&*plain, text, GenerateConfig::new()).await);
        assert!(rounded < 2e-2 && without > 10.0 * rounded, "{text}: {rounded}, {without}");
    }
}

#[tokio::test]
async fn projections_around_the_layers_refuse_adapters() {
    let model = golden_model("opt_350m_v4").await;
    for (name, outputs, inputs) in [("project_in", 32, 20), ("project_out", 20, 32)] {
        let module = format!("model.decoder.{name}");
        let tensors = LoraTensors::new(2, 1.0, vec![0.5; 2 * inputs], vec![0.5; 2 * outputs]).unwrap();
        let dir = TempDir::new("around");
        AdapterFile::new([(module.clone(), tensors)].into()).write(&dir.0).unwrap();
        let error = model.load_adapter("a", &dir.0).await.unwrap_err().to_string();
        assert!(error.contains(&module) && error.contains("no linear map"), "{error}");
    }
}

/// The error of reading a changed copy of an adapter and resolving it against its model, which must mention all of
/// `needles`.
async fn refused(change: impl FnOnce(&Path), needles: &[&str]) {
    let dir = TempDir::copy_of("adapters/q_v", "bad-adapter");
    change(&dir.0);
    let model = golden_model("gqa_llama3").await;
    let error = model.load_adapter("bad", &dir.0).await.unwrap_err();
    assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is not in {text:?}");
    }
    assert!(model.adapters().is_empty());
}

#[tokio::test]
async fn unsupported_peft_settings_are_refused() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", json!(null)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("lora_bias", json!(true)),
        ("trainable_token_indices", json!([1])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("target_modules", json!([1])),
        ("r", json!(3)),
        ("r", json!(0)),
        ("r", json!("four")),
        ("r", json!(1_000_000_000_000u64)),
        ("lora_alpha", json!(null)),
        ("rank_pattern", json!({"q_proj": 7})),
        ("rank_pattern", json!({"(": 7})),
        ("alpha_pattern", json!({"q_proj": "much"})),
        ("use_dora", json!("yes")),
    ] {
        let change = |dir: &Path| {
            let path = dir.join("adapter_config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config[key] = value;
            fs::write(path, config.to_string()).unwrap();
        };
        let named = if key == "rank_pattern" { "q_proj" } else { key };
        refused(change, &["adapter_config.json", if named == "q_proj" { "" } else { named }]).await;
    }
}

#[tokio::test]
async fn damaged_adapters_are_refused() {
    let weights = |dir: &Path| dir.join("adapter_model.safetensors");
    refused(|dir| fs::remove_file(weights(dir)).unwrap(), &["adapter_model.safetensors"]).await;
    refused(|dir| fs::remove_file(dir.join("adapter_config.json")).unwrap(), &["adapter_config.json"]).await;
    for len in [0, 8, 100, 2000] {
        let cut = |dir: &Path| {
            let whole = fs::read(weights(dir)).unwrap();
            fs::write(weights(dir), &whole[..len]).unwrap();
        };
        refused(cut, &["adapter_model.safetensors", "not a safetensors file"]).await;
    }
    for path in ["/nowhere/at/all", "."] {
        let config = LoadConfig::new().adapter_path(path);
        let error = tokenflow::load_model(golden_path("gqa_llama3"), config).await.err().unwrap();
        assert!(error.to_string().contains("adapter_config.json: cannot be read"), "{error}");
    }
    let huge = |dir: &Path| {
        let mut whole = fs::read(weights(dir)).unwrap();
        whole[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(weights(dir), whole).unwrap();
    };
    refused(huge, &["adapter_model.safetensors"]).await;
}

/// As `refused`, of an adapter that has other tensors.
async fn refused_tensors(change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>), needles: &[&str]) {
    let rewrite = |dir: &Path| {
        let path = dir.join("adapter_model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), numbers(view.data()))));
        let mut tensors = tensors.collect();
        change(&mut tensors);
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let stored: Vec<_> =
            tensors.into_iter().map(|(name, (shape, numbers))| (name, shape, bytes(&numbers))).collect();
        let views = stored.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    refused(rewrite, needles).await;
}

#[tokio::test]
async fn adapter_tensors_of_wrong_shape_are_refused() {
    const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
    let named = |part: &str| format!("{Q}.{part}");
    refused_tensors(|t| drop(t.remove(&named("lora_B.weight"))), &["model.layers.0.self_attn.q_proj", "has no B"])
        .await;
    refused_tensors(|t| drop(t.remove(&named("lora_A.weight"))), &["has no A"]).await;
    refused_tensors(|t| t.clear(), &["holds no tensor"]).await;
    let a = named("lora_A.weight");
    refused_tensors(|t| t.get_mut(&a).unwrap().1[5] = f32::NAN, &[&a, "NaN"]).await;
    refused_tensors(|t| t.get_mut(&a).unwrap().1[5] = f32::INFINITY, &[&a, "inf"]).await;
    // One of the next rank, one of other inputs, one that is no matrix, one that is empty.
    refused_tensors(|t| drop(t.insert(a.clone(), (vec![3, 48], vec![0.0; 144]))), &["rank 3", "rank 4"]).await;
    refused_tensors(|t| drop(t.insert(a.clone(), (vec![4, 47], vec![0.0; 188]))), &["[96, 47]", "[96, 48]"]).await;
    refused_tensors(|t| drop(t.insert(a.clone(), (vec![192], vec![0.0; 192]))), &[&a, "[192]"]).await;
    refused_tensors(|t| drop(t.insert(a.clone(), (vec![0, 48], Vec::new()))), &[&a, "empty"]).await;
    let magnitude = named("lora_magnitude_vector");
    refused_tensors(|t| drop(t.insert(magnitude, (vec![96], vec![1.0; 96]))), &["DoRA"]).await;
    for (module, needle) in [
        ("model.layers.9.self_attn.q_proj", "q_proj, "),
        ("model.embed_tokens", "k_proj, "),
        ("model.layers.0.mlp.experts", "no linear map"),
    ] {
        let both = |t: &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>| {
            for (part, shape) in [("lora_A", vec![4, 48]), ("lora_B", vec![96, 4])] {
                let len = shape.iter().product();
                t.insert(format!("base_model.model.{module}.{part}.weight"), (shape, vec![0.0; len]));
            }
        };
        refused_tensors(both, &[module, needle]).await;
    }
    let embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
    refused_tensors(|t| drop(t.insert(embedding.into(), (vec![4, 320], vec![0.0; 1280]))), &[embedding, "embedding"])
        .await;
    let saved = "base_model.model.lm_head.weight";
    refused_tensors(|t| drop(t.insert(saved.into(), (vec![1], vec![0.0]))), &[saved]).await;
}

#[tokio::test]
async fn unsupported_mlx_lm_settings_are_refused() {
    for (pointer, value, needle) in [
        ("/fine_tune_type", json!("full"), "fine_tune_type"),
        ("/lora_parameters/rank", json!(8), "lora_parameters.rank"),
        ("/lora_parameters/scale", json!(null), "lora_parameters.scale"),
        ("/lora_parameters", json!(3), "lora_parameters"),
    ] {
        let dir = TempDir::copy_of("adapters/mlx", "bad-mlx");
        let path = dir.0.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        *config.pointer_mut(pointer).unwrap() = value;
        fs::write(path, config.to_string()).unwrap();
        let error = AdapterFile::read(&dir.0).unwrap_err();
        assert!(error.to_string().contains(needle), "{error}");
    }
}
