//! Directories of other tools: odd ones that transformers loads are loaded, and unsupported ones are named.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tokenflow::{AdapterFile, Error, GenerateConfig, LoadConfig, LoraTensors, discover, load_model, try_discover};

use crate::{TempDir, golden::difference, golden_path, read_json};

/// The tensors of a file by their names.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(dir: &Path) -> Tensors {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().into(), view.data().into()));
    file.tensors().into_iter().map(tensor).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn write_index(dir: &Path, files: &[(&str, &Tensors)]) {
    let entries = files.iter().flat_map(|(file, tensors)| tensors.keys().map(move |name| (name.clone(), json!(file))));
    let index = json!({"metadata": {}, "weight_map": Value::Object(entries.collect())});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Changes `config.json`: nulls take keys away.
fn configure(dir: &TempDir, changes: Value) {
    let path = dir.0.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => _ = config.as_object_mut().unwrap().remove(key),
            value => config[key] = value.clone(),
        }
    }
    fs::write(path, config.to_string()).unwrap();
}

async fn logits_with(dir: &Path, config: LoadConfig) -> Vec<f32> {
    let model = load_model(dir, config).await.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let config = GenerateConfig::new().return_logits(true);
    model.classify(&["a few words"], config).await.unwrap().remove(0).logits.unwrap()
}

async fn logits(dir: &Path) -> Vec<f32> {
    logits_with(dir, LoadConfig::new()).await
}

async fn refused(path: &Path, needles: &[&str]) {
    let loaded = tokio::time::timeout(Duration::from_secs(60), load_model(path, LoadConfig::new())).await;
    let error = match loaded.expect("an answer") {
        Ok(_) => panic!("{} loads; {needles:?} were to be refused", path.display()),
        Err(error) => error,
    };
    assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is not in {text:?}");
    }
}

#[tokio::test]
async fn shard_index_beside_a_whole_file_is_ignored() {
    let expected = logits(&golden_path("qwen3")).await;
    let dir = TempDir::copy_of("qwen3", "stale-index");
    let all = tensors(&dir.0);
    write_index(&dir.0, &[("model-00001-of-00001.safetensors", &all)]);
    assert_eq!(logits(&dir.0).await, expected);
    assert_eq!(discover(&dir.0).next().expect("is found").num_files, 1);
    // Even if it is damaged.
    fs::write(dir.0.join("model.safetensors.index.json"), "{").unwrap();
    assert_eq!(logits(&dir.0).await, expected);
    // Even if its files are there.
    write_index(&dir.0, &[("model-00001-of-00001.safetensors", &all)]);
    let zeros =
        all.iter().map(|(name, (dtype, shape, bytes))| (name.clone(), (*dtype, shape.clone(), vec![0; bytes.len()])));
    write(&dir.0.join("model-00001-of-00001.safetensors"), &zeros.collect());
    assert_eq!(logits(&dir.0).await, expected);
}

#[tokio::test]
async fn index_of_absent_shards_and_duplicate_tensors() {
    let expected = logits(&golden_path("qwen3")).await;
    let dir = TempDir::copy_of("qwen3", "shards");
    let all = tensors(&dir.0);
    fs::remove_file(dir.0.join("model.safetensors")).unwrap();
    let (mut first, mut second): (Tensors, Tensors) = all.clone().into_iter().enumerate().fold(
        Default::default(),
        |(mut first, mut second), (at, (name, tensor))| {
            if at % 2 == 0 { &mut first } else { &mut second }.insert(name, tensor);
            (first, second)
        },
    );
    let file = |number: usize, of: usize| format!("model-{number:05}-of-{of:05}.safetensors");
    let put = |first: &Tensors, second: &Tensors| {
        write(&dir.0.join(file(1, 2)), first);
        write(&dir.0.join(file(2, 2)), second);
    };
    put(&first, &second);
    // An index of another number of files.
    let five: Vec<String> = (1..=5).map(|number| file(number, 5)).collect();
    let names: Vec<Tensors> = (0..5)
        .map(|of| {
            all.clone().into_iter().enumerate().filter(|(at, _)| at % 5 == of).map(|(_, tensor)| tensor).collect()
        })
        .collect();
    let entries: Vec<_> = five.iter().map(String::as_str).zip(&names).collect();
    write_index(&dir.0, &entries);
    assert_eq!(logits(&dir.0).await, expected);
    // One of whose files some are there.
    write_index(&dir.0, &[(&file(1, 2), &first), (&file(7, 7), &second)]);
    assert_eq!(logits(&dir.0).await, expected);
    assert_eq!(discover(&dir.0).next().expect("is found").num_files, 2);
    // Of a tensor that is there twice the last one counts.
    let (twice, tensor) = first.pop_first().unwrap();
    second.insert(twice.clone(), tensor.clone());
    let other = (tensor.0, tensor.1, vec![0; tensor.2.len()]);
    first.insert(twice.clone(), other);
    put(&first, &second);
    write_index(&dir.0, &[(&file(1, 2), &first), (&file(2, 2), &second)]);
    assert_eq!(logits(&dir.0).await, expected);
    // A tensor that is nowhere is an error with the file that should hold it.
    second.remove("model.norm.weight");
    first.remove("model.norm.weight");
    put(&first, &second);
    let rest = Tensors::from([("model.norm.weight".to_owned(), all["model.norm.weight"].clone())]);
    write_index(&dir.0, &[(&file(1, 3), &first), (&file(3, 3), &rest)]);
    refused(&dir.0, &["model-00003-of-00003.safetensors", "model.norm.weight"]).await;
    assert_eq!(discover(&dir.0).count(), 0);
}

#[tokio::test]
async fn tensor_names_without_and_with_other_prefixes() {
    for (golden, base) in [
        ("mha_tied", "model."),
        ("qwen3", "model."),
        ("gemma3_v4", "model."),
        ("phi_v5", "model."),
        ("opt_v4", "model."),
        ("gpt2_v4", "transformer."),
        ("gpt_bigcode_v4", "transformer."),
        ("bloom_v4", "transformer."),
        ("falcon_v4", "transformer."),
        ("gpt_neox_v4", "gpt_neox."),
    ] {
        let expected = logits(&golden_path(golden)).await;
        let renamed = async |what: &str, rename: &dyn Fn(&str) -> String| {
            let dir = TempDir::copy_of(golden, "renamed");
            let tensors = tensors(&dir.0).into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
            write(&dir.0.join("model.safetensors"), &tensors);
            assert_eq!(logits(&dir.0).await, expected, "{golden} {what}");
        };
        renamed("without", &|name| name.strip_prefix(base).unwrap_or(name).to_owned()).await;
        renamed("model.", &|name| format!("model.{name}")).await;
        renamed("language_model.", &|name| format!("language_model.{name}")).await;
        renamed("inside", &|name| match name.strip_prefix(base) {
            Some(rest) => format!("{base}language_model.{rest}"),
            None => name.to_owned(),
        })
        .await;
    }
}

#[tokio::test]
async fn adapters_and_merges_of_models_without_a_prefix() {
    let dir = TempDir::copy_of("mha_tied", "bare");
    let all = tensors(&dir.0);
    let bare = |name: &String| name.strip_prefix("model.").unwrap_or(name).to_owned();
    write(&dir.0.join("model.safetensors"), &all.iter().map(|(name, tensor)| (bare(name), tensor.clone())).collect());
    let wave = |n: usize| (0..n).map(|i| (i as f32).sin()).collect::<Vec<f32>>();
    let lora = || LoraTensors::new(2, 0.5, wave(2 * 48), wave(2 * 48)).unwrap();
    let mut seen = Vec::new();
    for (name, module) in [("full", "model.layers.1.self_attn.q_proj"), ("short", "layers.1.self_attn.q_proj")] {
        let adapter = dir.0.join(name);
        AdapterFile::new([(module.to_owned(), lora())].into()).write(&adapter).unwrap();
        for model in [&golden_path("mha_tied"), &dir.0] {
            seen.push(logits_with(model, LoadConfig::new().adapter_path(&adapter)).await);
        }
        let merged = dir.0.join(format!("{name}-merged"));
        tokenflow::merge_adapter(&dir.0, &adapter, &merged).await.unwrap();
        assert!(difference(&logits(&merged).await, &seen[0]) < 1e-4);
    }
    assert!(seen.iter().all(|logits| *logits == seen[0]));
    assert!(difference(&logits(&dir.0).await, &seen[0]) > 1e-3, "the adapter changes something");
}

#[tokio::test]
async fn rope_scaling_extends_the_context() {
    let yarn = |more: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 4.0});
        scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"rope_scaling": scaling})
    };
    for (changes, context_len) in [
        (json!({}), 64),
        (yarn(json!({"original_max_position_embeddings": 64})), 256),
        (yarn(json!({"original_max_position_embeddings": 16})), 64),
        (yarn(json!({"original_max_position_embeddings": 32, "type": "yarn"})), 128),
        (yarn(json!({})), 256),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), 128),
        (json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}), 128),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 32}}), 64),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 3.0}}), 192),
        (
            json!({"rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }}),
            64,
        ),
    ] {
        let dir = TempDir::copy_of("mha_tied", "context");
        configure(&dir, json!({"max_position_embeddings": 64}));
        configure(&dir, changes.clone());
        let model = load_model(&dir.0, LoadConfig::new()).await.unwrap();
        assert_eq!(model.info().context_len, context_len, "{changes}");
    }
}

#[tokio::test]
async fn old_and_new_rope_keys_resolve_as_in_transformers() {
    let with = async |changes: Value| {
        let dir = TempDir::copy_of("mha_tied", "rope");
        configure(&dir, json!({"rope_theta": null, "rope_scaling": null}));
        configure(&dir, changes);
        logits(&dir.0).await
    };
    let linear = |theta: f64| json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": theta}});
    let older = json!({"rope_type": "linear", "factor": 2.0});
    let newer = json!({"rope_type": "default", "rope_theta": 500.0});
    let (usual, theirs) = (with(linear(1e4)).await, with(linear(70.0)).await);
    assert!(difference(&usual, &theirs) > 1e-3);
    for (changes, expected) in [
        (json!({"rope_scaling": older, "rope_parameters": newer}), &usual),
        (json!({"rope_scaling": older, "rope_parameters": newer, "rope_theta": 70.0}), &theirs),
        (
            json!({"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 70.0}),
            &theirs,
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 70.0}, "rope_theta": 500.0}), &theirs),
    ] {
        assert_eq!(with(changes.clone()).await, *expected, "{changes}");
    }
}

#[tokio::test]
async fn differing_lm_head_overrides_tied_embeddings() {
    let expected = logits(&golden_path("mha_tied")).await;
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let dir = TempDir::copy_of("mha_tied", "tied");
    let path = dir.0.join("model.safetensors");
    let mut all = tensors(&dir.0);
    all.insert(head.into(), all[embedding].clone());
    write(&path, &all);
    assert_eq!(logits(&dir.0).await, expected, "a copy");
    let copy = all.remove(embedding).unwrap();
    write(&path, &all);
    assert_eq!(logits(&dir.0).await, expected, "only the output matrix");
    let mut other = copy.clone();
    other.2.chunks_exact_mut(4).for_each(|bytes| bytes[3] ^= 0x80);
    all.insert(embedding.into(), copy);
    all.insert(head.into(), other);
    write(&path, &all);
    let negated: Vec<f32> = expected.iter().map(|logit| -logit).collect();
    assert_eq!(logits(&dir.0).await, negated, "the negated embedding");
    configure(&dir, json!({"tie_word_embeddings": false}));
    assert_eq!(logits(&dir.0).await, negated);
}

#[tokio::test]
async fn keys_that_an_architecture_ignores() {
    let heads = json!({"num_key_value_heads": 1, "head_dim": 3, "mlp_bias": false, "rms_norm_eps": 7.0});
    let more = json!({
        "num_key_value_heads": 1, "head_dim": 3, "mlp_bias": false, "rms_norm_eps": 7.0, "attention_bias": false,
        "hidden_act": "relu", "intermediate_size": 5, "attention_out_bias": true,
    });
    let biases = |present: bool| json!({"attention_bias": present, "mlp_bias": present});
    for (golden, changes) in [
        ("gpt_neox_v4", heads),
        ("gpt2_v4", more.clone()),
        ("gpt_bigcode_v4", more.clone()),
        ("bloom_v4", more.clone()),
        ("falcon_v4", more.clone()),
        ("falcon_40b_v4", more.clone()),
        ("opt_v4", json!({"num_key_value_heads": 1, "head_dim": 3, "attention_bias": false, "hidden_act": "silu"})),
        ("phi_v5", biases(false)),
        ("starcoder2_v4", biases(false)),
        ("qwen2", biases(true)),
        ("qwen3", json!({"mlp_bias": true})),
        ("mistral_v4", biases(true)),
        ("phi3_v4", biases(true)),
        ("gemma2_v4", json!({"mlp_bias": true, "hidden_act": "relu"})),
        ("olmo2_v4", json!({"sliding_window": 2, "mlp_bias": true})),
        ("cohere2_v4", json!({"use_qk_norm": true})),
        ("gqa_llama3", json!({"num_local_experts": 4})),
    ] {
        let dir = TempDir::copy_of(golden, "unread");
        configure(&dir, changes);
        assert_eq!(logits(&dir.0).await, logits(&golden_path(golden)).await, "{golden}");
    }
    // The text part of a multimodal model.
    for (golden, changes) in
        [("gemma3_inside", json!({"mlp_bias": true})), ("mistral3_v4", biases(true)), ("mistral3_v5", biases(true))]
    {
        let dir = TempDir::copy_of(golden, "unread-text");
        let mut text = read_json(&format!("{golden}/config.json"))["text_config"].clone();
        text.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        configure(&dir, json!({"text_config": text}));
        assert_eq!(logits(&dir.0).await, logits(&golden_path(golden)).await, "{golden}");
    }
}

#[tokio::test]
async fn architecture_from_the_class_name_alone() {
    for golden in
        ["mha_tied", "qwen3", "gpt_neox_v4", "gpt2_v4", "hunyuan_v1_dense_v4", "gemma3_v4", "granitemoeshared_v4"]
    {
        let dir = TempDir::copy_of(golden, "class");
        assert!(read_json(&format!("{golden}/config.json"))["architectures"][0].is_string(), "{golden}");
        configure(&dir, json!({"model_type": null}));
        assert_eq!(logits(&dir.0).await, logits(&golden_path(golden)).await, "{golden}");
        assert!(discover(&dir.0).next().is_some_and(|model| !model.model_type.is_empty()));
    }
    let dir = TempDir::copy_of("mha_tied", "no-class");
    configure(&dir, json!({"model_type": null, "architectures": ["TelepathyForCausalLM"]}));
    let error = load_model(&dir.0, LoadConfig::new()).await.err();
    assert!(matches!(error, Some(Error::UnsupportedArchitecture { architecture, .. }) if architecture == "telepathy"));
}

#[tokio::test]
async fn python_json_infinity_and_nan() {
    let expected = logits(&golden_path("qwen3")).await;
    let dir = TempDir::copy_of("qwen3", "infinity");
    for file in ["config.json", "generation_config.json", "tokenizer_config.json"] {
        let text = fs::read_to_string(dir.0.join(file)).unwrap();
        let more =
            r#"{"time_step_limit": [0.0, Infinity], "low": -Infinity, "none": NaN, "t5": {"__float__": "NaN"}, "#;
        fs::write(dir.0.join(file), text.replacen('{', more, 1)).unwrap();
    }
    assert_eq!(logits(&dir.0).await, expected);
    configure_text(&dir, r#""rms_norm_eps": Infinity"#);
    refused(&dir.0, &["config.json", "rms_norm_eps = inf", "not a finite number"]).await;
    configure_text(&dir, r#""rms_norm_eps": {"__float__": "-Infinity"}"#);
    refused(&dir.0, &["config.json", "rms_norm_eps = -inf"]).await;
}

#[tokio::test]
async fn generation_config_that_is_no_json_is_ignored() {
    let expected = logits(&golden_path("mha_tied")).await;
    for text in ["", "no JSON", "{\"eos_token_id\": ", "\u{feff}{}", "[1]"] {
        let dir = TempDir::copy_of("mha_tied", "generation");
        fs::write(dir.0.join("generation_config.json"), text).unwrap();
        assert_eq!(logits(&dir.0).await, expected, "{text:?}");
    }
}

/// A last entry, which counts.
fn configure_text(dir: &TempDir, entry: &str) {
    let path = dir.0.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let end = text.rfind('}').unwrap();
    fs::write(&path, format!("{}, {entry}}}", &text[..end])).unwrap();
}

#[tokio::test]
async fn unsupported_formats_are_named() {
    let module = "model.layers.0.self_attn.q_proj";
    // The weight's place is taken by tensors of these names and types.
    let packed = |config: Option<Value>, stored: &[(&str, Dtype)]| {
        let dir = TempDir::copy_of("mha_tied", "format");
        let mut all = tensors(&dir.0);
        all.remove(&format!("{module}.weight"));
        for (name, dtype) in stored {
            let bytes = vec![1; 16 * dtype.bitsize() / 8];
            all.insert(format!("{module}.{name}"), (*dtype, vec![16, 1], bytes));
        }
        write(&dir.0.join("model.safetensors"), &all);
        if let Some(config) = config {
            configure(&dir, json!({"quantization_config": config}));
        }
        dir
    };
    let method = |method: &str| Some(json!({"quant_method": method}));
    let bnb: &[_] = &[("weight", Dtype::U8), ("weight.absmax", Dtype::F32)];
    for (config, stored, needle) in [
        (method("bitsandbytes"), bnb, "bitsandbytes"),
        (None, bnb, "bitsandbytes"),
        (None, &[("weight", Dtype::I8), ("SCB", Dtype::F32)], "bitsandbytes, 8 bits"),
        (
            method("compressed-tensors"),
            &[("weight_packed", Dtype::I32), ("weight_scale", Dtype::BF16)],
            "compressed-tensors",
        ),
        (None, &[("weight_packed", Dtype::I32), ("weight_shape", Dtype::I64)], "compressed-tensors"),
        (
            Some(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"})),
            &[("weight", Dtype::U8), ("weight_scale_2", Dtype::F32)],
            "NVFP4",
        ),
        (None, &[("weight", Dtype::U8), ("weight_scale_2", Dtype::F32)], "NVFP4"),
        (method("hqq"), &[("W_q", Dtype::U8)], "hqq"),
        (method("eetq"), &[("weight", Dtype::I8)], "eetq"),
        (method("aqlm"), &[("codes", Dtype::I16)], "aqlm"),
        (method("quanto"), &[("weight._data", Dtype::I8)], "quanto"),
        (method("torchao"), &[("weight", Dtype::I8)], "torchao"),
        (method("bitnet"), &[("weight", Dtype::U8)], "bitnet"),
        (method("auto-round"), &[("qweight", Dtype::I32)], "auto-round"),
        (Some(json!({"quant_method": "gptq", "checkpoint_format": "marlin"})), &[("B", Dtype::I32)], "marlin"),
    ] {
        refused(&packed(config, stored).0, &[needle, "not supported", "GPTQ, AWQ"]).await;
    }
    let dir = packed(None, &[("weight", Dtype::U8)]);
    fs::write(dir.0.join("hf_quant_config.json"), r#"{"quantization": {"quant_algo": "NVFP4"}}"#).unwrap();
    refused(&dir.0, &["hf_quant_config.json", "quantization.quant_algo = \"NVFP4\""]).await;
    // Whole weights are loaded, whatever they once were.
    let dir = TempDir::copy_of("mha_tied", "leftover");
    configure(&dir, json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}));
    assert_eq!(logits(&dir.0).await, logits(&golden_path("mha_tied")).await);
}

#[tokio::test]
async fn directories_without_safetensors_name_their_contents() {
    for (file, needle) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "pickles"),
        ("consolidated.00.pth", "pickles"),
        ("consolidated.safetensors", "own layout"),
        ("weights.npz", "MLX"),
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("model.onnx", "ONNX"),
        ("model-Q4_K_M.gguf", "load that file"),
    ] {
        let dir = TempDir::copy_of("mha_tied", "weightless");
        fs::rename(dir.0.join("model.safetensors"), dir.0.join(file)).unwrap();
        refused(&dir.0, &["holds no *.safetensors file", file, needle]).await;
    }
    for (file, needle) in [
        ("adapter_config.json", "adapter_path"),
        ("params.json", "conversion scripts"),
        ("model-Q4_K_M.gguf", "load that file"),
    ] {
        let dir = TempDir::new("configless");
        fs::write(dir.0.join(file), "{}").unwrap();
        refused(&dir.0, &[needle]).await;
    }
}

#[test]
fn try_discover_reports_a_missing_folder() {
    let error = try_discover("/nowhere/at/all").err().expect("an error");
    assert_eq!(error.to_string(), "/nowhere/at/all: cannot be listed");
    let dir = TempDir::new("a-file");
    fs::write(dir.0.join("file"), "").unwrap();
    assert!(try_discover(dir.0.join("file")).is_err());
    assert_eq!(try_discover(&dir.0).unwrap().count(), 0);
    assert_eq!(discover("/nowhere/at/all").count(), 0);
}

#[tokio::test]
async fn side_files_have_limits() {
    for (file, mib) in
        [("config.json", 33), ("generation_config.json", 33), ("tokenizer.json", 129), ("chat_template.jinja", 2)]
    {
        let dir = TempDir::copy_of("mha_tied", "large");
        // Holes take no place on the disk.
        fs::File::options().append(true).create(true).open(dir.0.join(file)).unwrap().set_len(mib << 20).unwrap();
        refused(&dir.0, &[file, "the most of such a file"]).await;
    }
    let dir = TempDir::copy_of("mha_tied", "many-values");
    configure_text(&dir, &format!("\"x\": [{}0]", "0,".repeat(2 << 20)));
    refused(&dir.0, &["config.json", "values"]).await;
    // Long texts are not many.
    let dir = TempDir::copy_of("mha_tied", "long");
    configure_text(&dir, &format!("\"x\": \"{}\"", "x".repeat(21 << 20)));
    assert_eq!(logits(&dir.0).await, logits(&golden_path("mha_tied")).await);
}

#[tokio::test]
async fn weights_truncated_while_reading_are_an_error() {
    for (golden, file) in [("mha_tied", "model.safetensors"), ("gguf/tiny-q8_0.gguf", "")] {
        let dir = TempDir::new("cut");
        let path = match file {
            "" => {
                let path = dir.0.join("model.gguf");
                fs::copy(golden_path(golden), &path).unwrap();
                path
            }
            file => {
                let files = golden_path(golden).read_dir().unwrap().map(|entry| entry.unwrap());
                files.for_each(|entry| _ = fs::copy(entry.path(), dir.0.join(entry.file_name())).unwrap());
                dir.0.join(file)
            }
        };
        let cut = path.clone();
        let config = LoadConfig::new()
            .progress(move |_| fs::File::options().write(true).open(&cut).unwrap().set_len(9000).unwrap());
        let model = if file.is_empty() { path } else { dir.0.clone() };
        let error = load_model(&model, config).await.err().expect("an error");
        assert!(matches!(&error, Error::InvalidModel { .. }) && error.to_string().contains("cut short"), "{error:?}");
    }
}

#[cfg(unix)]
mod no_regular_files {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;

    /// Creates something in place of a file; and the words of its error.
    type Other = (fn(&Path), &'static str);

    fn others() -> [Other; 5] {
        [
            (|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()), "a named pipe"),
            (|path| symlink("/dev/zero", path).unwrap(), "a device"),
            (|path| symlink(path, path).unwrap(), "cannot be read"),
            (|path| fs::create_dir(path).unwrap(), "a directory"),
            (|path| _ = std::os::unix::net::UnixListener::bind(path).unwrap(), "a socket"),
        ]
    }

    /// Calls `check` for each of them in place of each of these files of a copied golden model.
    async fn in_place_of(golden: &str, files: &[&str], check: impl AsyncFn(&Path, &str, &str)) {
        for file in files {
            for (make, what) in others() {
                let dir = TempDir::copy_of(golden, "odd");
                let _ = fs::remove_file(dir.0.join(file));
                make(&dir.0.join(file));
                check(&dir.0, file, what).await;
            }
        }
    }

    #[tokio::test]
    async fn models() {
        let files = [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
            "chat_template.json",
        ];
        in_place_of("mha_tied", &files, async |dir, file, what| {
            refused(dir, &[file, what]).await;
            let found = discover(dir).count();
            assert!(found == 0 || !matches!(file, "config.json" | "model.safetensors"), "{file}");
        })
        .await;
        let files = ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"];
        in_place_of("opt_v4", &files, async |dir, file, what| refused(dir, &[file, what]).await).await;
        for (make, what) in others() {
            let dir = TempDir::new("odd-gguf");
            let path = dir.0.join("model.gguf");
            make(&path);
            if what != "a directory" {
                refused(&path, &["model.gguf", what]).await;
            }
            assert_eq!(discover(&dir.0).count(), 0);
        }
    }

    #[tokio::test]
    async fn adapters() {
        let files = ["adapter_config.json", "adapter_model.safetensors"];
        in_place_of("adapters/q_v", &files, async |dir, file, what| {
            let error = AdapterFile::read(dir).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let text = format!("{error}: {source}");
            assert!(text.contains(file) && text.contains(what), "{text}");
        })
        .await;
    }

    #[tokio::test]
    async fn companions_of_a_merged_model() {
        let adapter = TempDir::new("adapter");
        let lora = LoraTensors::new(1, 1.0, vec![1.0; 48], vec![1.0; 48]).unwrap();
        AdapterFile::new([("model.layers.0.self_attn.q_proj".to_owned(), lora)].into()).write(&adapter.0).unwrap();
        in_place_of("mha_tied", &["tokenizer.json", "special_tokens_map.json"], async |dir, file, what| {
            let out: PathBuf = dir.join("merged");
            let merged = tokio::time::timeout(Duration::from_secs(60), tokenflow::merge_adapter(dir, &adapter.0, &out));
            let error = merged.await.expect("an answer").unwrap_err();
            assert!(error.to_string().contains(file), "{error} ({what})");
            assert!(!out.exists());
        })
        .await;
    }
}
