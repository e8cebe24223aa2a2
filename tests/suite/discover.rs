use std::fs;

use tokenflow::discover;

use crate::{TempDir, golden_path};

#[test]
fn finds_models_one_level_deep_in_order() {
    let base = TempDir::new("discover");
    let put = |golden: &str, place: &str| {
        let to = base.0.join(place);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden_path(golden), to).unwrap();
    };
    for file in ["config.json", "model.safetensors"] {
        put(&format!("mha_tied/{file}"), &format!("b-llama/{file}"));
    }
    put("gguf/tiny-q8_0.gguf", "top.gguf");
    put("gguf/tiny-f32.gguf", "c/inner.gguf");
    put("gguf/tiny-f32.gguf", "c/too/deep.gguf");
    fs::create_dir_all(base.0.join("a-broken")).unwrap();
    fs::write(base.0.join("a-broken/config.json"), "{").unwrap();
    fs::write(base.0.join("a-broken/x.gguf"), "GGUF and nothing else").unwrap();
    fs::create_dir_all(base.0.join("d-weightless")).unwrap();
    fs::write(base.0.join("d-weightless/config.json"), r#"{"model_type": "llama"}"#).unwrap();

    let found: Vec<_> = discover(&base.0).collect();
    let real = base.0.canonicalize().unwrap();
    let paths: Vec<_> = found.iter().map(|model| model.path.strip_prefix(&real).unwrap().to_owned()).collect();
    assert_eq!(paths, ["top.gguf", "b-llama", "c/inner.gguf"].map(std::path::PathBuf::from));
    assert!(found.iter().all(|model| model.path.is_absolute() && model.model_type == "llama" && model.num_files == 1));
    let formats: Vec<_> =
        found.iter().map(|model| (model.format.as_str(), model.quant_bits, model.quant_group)).collect();
    assert_eq!(formats, [("gguf", 8, 32), ("safetensors", 0, 0), ("gguf", 0, 0)]);
}

#[test]
fn counts_only_files_that_loading_reads() {
    let base = TempDir::new("discover-files");
    let put = |place: &str| {
        let to = base.0.join(place);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let weights = place.ends_with("safetensors");
        fs::copy(golden_path(if weights { "mha_tied/model.safetensors" } else { "mha_tied/config.json" }), to).unwrap();
    };
    for model in ["indexed", "parts", "single", "without-a-part"] {
        put(&format!("{model}/config.json"));
        put(&format!("{model}/adapter_model.safetensors"));
        put(&format!("{model}/consolidated.safetensors"));
    }
    for part in 1..=2 {
        put(&format!("indexed/model-{part}.safetensors"));
        put(&format!("parts/model-{part}.safetensors"));
    }
    put("indexed/other.safetensors");
    put("single/model.safetensors");
    put("single/other.safetensors");
    put("without-a-part/model-1.safetensors");
    let index =
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    for model in ["indexed", "without-a-part"] {
        fs::write(base.0.join(model).join("model.safetensors.index.json"), index).unwrap();
    }
    let found = discover(&base.0).map(|model| (model.path.file_name().unwrap().to_owned(), model.num_files));
    assert_eq!(found.collect::<Vec<_>>(), [("indexed".into(), 2), ("parts".into(), 2), ("single".into(), 1)]);
}

#[test]
fn missing_folder_has_no_models() {
    assert_eq!(discover("/nowhere/at/all").count(), 0);
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_not_followed() {
    let base = TempDir::new("discover-links");
    std::os::unix::fs::symlink(golden_path("mha_tied"), base.0.join("link")).unwrap();
    std::os::unix::fs::symlink(golden_path("gguf/tiny-f32.gguf"), base.0.join("link.gguf")).unwrap();
    // The first part is there, the others are not.
    for part in 1..=4 {
        let name = format!("granite_v5-0000{part}-of-00004.gguf");
        let (from, to) = (golden_path(&format!("gguf_architectures/{name}")), base.0.join(name));
        if part == 1 { fs::copy(from, to).map(drop) } else { std::os::unix::fs::symlink(from, to) }.unwrap();
    }
    assert_eq!(discover(&base.0).count(), 0);
}

#[cfg(unix)]
#[test]
fn finds_hub_cache_sharded_and_quantized_models() {
    let base = TempDir::new("discover-hub");
    let model = base.0.join("models--org--name");
    let snapshot = model.join("snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("blobs")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden_path(&format!("mlx/{file}")), model.join("blobs").join(file)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{file}"), snapshot.join(file)).unwrap();
    }
    for part in 1..=4 {
        let name = format!("granite_v5-0000{part}-of-00004.gguf");
        fs::copy(golden_path(&format!("gguf_architectures/{name}")), base.0.join(name)).unwrap();
    }
    let found: Vec<_> = discover(&base.0).collect();
    let [parts, cached] = &found[..] else { panic!("{found:?}") };
    assert!(cached.path.ends_with("models--org--name/snapshots/0123abcd"));
    assert_eq!((cached.quant_bits, cached.quant_group, cached.num_files), (4, 64, 1));
    assert!(parts.path.ends_with("granite_v5-00001-of-00004.gguf"));
    assert_eq!((parts.model_type.as_str(), parts.num_files), ("granite", 4));
}
