//! [PEFT](https://github.com/huggingface/peft)'s directories.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use half::bf16;
use regex::{Regex, RegexBuilder};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};

use super::{
    AdapterFile, LoraTensors,
    file::CONFIG_FILE,
    tensor_reader::{AdapterTensors, LoraPart},
};
use crate::{
    Error, Result, files,
    weights::{Config, SafetensorsDir},
};

const TENSOR_FILE: &str = "adapter_model.safetensors";

/// The prefix of module names.
const PREFIX: &str = "base_model.model.";

/// Bytes of a pattern that is no name.
const MAX_PATTERN_LEN: usize = 4 << 10;
/// Groups and classes of a pattern.
const MAX_BRACKETS: usize = 64;
/// Patterns of modules' names beside the names themselves, and the memory that each may take.
const MAX_PATTERNS: usize = 256;
const MAX_PATTERN_BYTES: usize = 256 << 10;

/// Keys that ask for more than A, B and magnitudes.
const REFUSED: [&str; 11] = [
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
];

/// Ways to begin that change the model's own weights, too.
const REBASING: [&str; 5] = ["pissa", "olora", "corda", "lora_ga", "loftq"];

pub fn read(path: &Path, config: &Config) -> Result<AdapterFile> {
    check(config)?;
    let patterns = Patterns::read(config)?;
    let dora = config.bool_or("use_dora", false)?;
    let file = SafetensorsDir::of_file(path.join(TENSOR_FILE))?;
    let storage = AdapterTensors {
        part: |name: &str| part(&file, name),
        scale: |module: &str, rank: usize| patterns.scale(config, module, rank),
        transposed: false,
        dora,
        file: &file,
    };
    let base_model = config.opt_str("base_model_name_or_path")?.filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(AdapterFile { base_model, modules: storage.read()?, path: path.to_owned(), bfloat16: false })
}

/// Refuses adapters other than LoRA of linear maps.
fn check(config: &Config) -> Result<()> {
    match config.opt_str("peft_type")? {
        Some("LORA") => {}
        Some(_) => return Err(config.bad("peft_type", "LORA is supported")),
        None => return Err(config.bad("peft_type", "is missing; neither PEFT's nor MLX-LM's")),
    }
    if config.opt_str("bias")?.is_some_and(|bias| bias != "none") {
        return Err(config.bad("bias", "adapters that change biases are not supported"));
    }
    let empty = |value: &Value| match value {
        Value::Bool(value) => !value,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    };
    if let Some(key) = REFUSED.into_iter().find(|key| config.get(key).is_some_and(|value| !empty(value))) {
        return Err(config.bad(key, "adapters of this kind are not supported"));
    }
    let begun = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if REBASING.iter().any(|way| begun.starts_with(way)) {
        let why = "it is relative to changed weights of the model; PEFT converts it as it saves it";
        return Err(config.bad("init_lora_weights", why));
    }
    if let Some(targets) = config.get("target_modules").filter(|targets| !targets.is_string()) {
        let names = targets.as_array().is_some_and(|targets| targets.iter().all(Value::is_string));
        if !names {
            return Err(config.bad("target_modules", "neither a list of names nor a pattern"));
        }
    }
    Ok(())
}

/// Which part of which module a tensor is.
fn part(file: &SafetensorsDir, name: &str) -> Result<Option<(String, LoraPart)>> {
    let bad = |why: &str| Err(Error::model(file.path(), format!("tensor {name} {why}")));
    let module = name.strip_prefix(PREFIX).unwrap_or(name);
    let parts = [
        (".lora_A.weight", LoraPart::A),
        (".lora_B.weight", LoraPart::B),
        (".lora_magnitude_vector", LoraPart::Magnitude),
        (".lora_magnitude_vector.weight", LoraPart::Magnitude),
    ];
    let found = parts.into_iter().find_map(|(suffix, part)| Some((module.strip_suffix(suffix)?.to_owned(), part)));
    if found.is_some() {
        return Ok(found);
    }
    // A copy of the model's own, which PEFT adds where the output matrix is a target.
    if module.ends_with(".base_layer.weight") || module.ends_with(".base_layer.bias") {
        return Ok(None);
    }
    if module.contains(".lora_embedding_") {
        return bad("changes an embedding; only linear maps can be changed");
    }
    bad("is no lora_A, lora_B or lora_magnitude_vector of a module")
}

/// How ranks and alphas depend on the module.
struct Patterns {
    ranks: Vec<(ModulePattern, usize)>,
    alphas: Vec<(ModulePattern, f64)>,
    rank: usize,
    alpha: f64,
    stabilized: bool,
}

impl Patterns {
    fn read(config: &Config) -> Result<Self> {
        Ok(Self {
            ranks: patterns(config, "rank_pattern", |of, key| of.size(key))?,
            alphas: patterns(config, "alpha_pattern", alpha)?,
            rank: config.size("r")?,
            alpha: alpha(config, "lora_alpha")?,
            stabilized: config.bool_or("use_rslora", false)?,
        })
    }

    fn scale(&self, config: &Config, module: &str, found: usize) -> Result<f64> {
        let rank = first(&self.ranks, module).unwrap_or(self.rank);
        if rank != found {
            return Err(config.bad("r", &format!("module {module} should have rank {rank} and has {found}")));
        }
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        // https://arxiv.org/abs/2312.03732
        Ok(alpha / if self.stabilized { (rank as f64).sqrt() } else { rank as f64 })
    }
}

fn alpha(config: &Config, key: &str) -> Result<f64> {
    config.opt_f64(key)?.ok_or_else(|| config.bad(key, "is missing"))
}

/// A pattern of the ends of module names.
enum ModulePattern {
    /// A name, whose dots are any character.
    Name(String),
    Regex(Box<Regex>),
}

impl ModulePattern {
    fn new(end: &str) -> std::result::Result<Self, String> {
        if end.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.') {
            return Ok(Self::Name(end.to_owned()));
        }
        if end.len() > MAX_PATTERN_LEN {
            return Err(format!("it has {} bytes, more than {MAX_PATTERN_LEN}", end.len()));
        }
        // Parsing takes quadratic time in how deep they are.
        if end.matches(['(', '[']).count() > MAX_BRACKETS {
            return Err(format!("it has more than {MAX_BRACKETS} groups and classes"));
        }
        let mut pattern = RegexBuilder::new(&format!(r"^(.*\.)?({end})$"));
        let pattern = pattern.size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES).build();
        Ok(Self::Regex(Box::new(pattern.map_err(|error| error.to_string())?)))
    }

    fn is_match(&self, module: &str) -> bool {
        match self {
            Self::Name(name) => {
                let mut rest = module.chars().rev();
                name.chars().rev().all(|c| rest.next().is_some_and(|other| c == '.' || c == other))
                    && rest.next().is_none_or(|before| before == '.')
            }
            Self::Regex(pattern) => pattern.is_match(module),
        }
    }
}

/// Values by patterns of the ends of modules' names.
fn patterns<T>(config: &Config, key: &str, value: fn(&Config, &str) -> Result<T>) -> Result<Vec<(ModulePattern, T)>> {
    let Some(entries) = config.opt_object(key)? else { return Ok(Vec::new()) };
    let mut regexes = 0;
    let pattern = |end: &str| {
        let shown: String = end.chars().take(100).collect();
        let bad = |error| config.bad(key, &format!("{shown:?} is no pattern: {error}"));
        let pattern = ModulePattern::new(end).map_err(bad)?;
        regexes += usize::from(matches!(pattern, ModulePattern::Regex(_)));
        if regexes > MAX_PATTERNS {
            return Err(config.bad(key, &format!("has more than {MAX_PATTERNS} patterns beside names")));
        }
        Ok((pattern, value(&entries, end)?))
    };
    entries.keys().map(pattern).collect()
}

fn first<T: Copy>(patterns: &[(ModulePattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

pub fn write(adapter: &AdapterFile, dir: &Path) -> Result<()> {
    let failed = |error: std::io::Error| Error::model_because(dir, "cannot be written to", error);
    let tensors = tensors(adapter).map_err(|error| Error::model_because(dir, "holds no tensors", error))?;
    let config = serde_json::to_vec_pretty(&config(adapter))
        .map_err(|error| Error::model_because(dir, "has no configuration", error))?;
    fs::create_dir_all(dir).map_err(failed)?;
    let files = [(TENSOR_FILE, tensors), (CONFIG_FILE, config)].map(|(name, bytes)| {
        let path = dir.join(name);
        (files::temp_sibling(&path), path, bytes)
    });
    let write = |(begun, _, bytes): &(PathBuf, PathBuf, Vec<u8>)| {
        let mut file = File::create(begun)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let finish = |(begun, path, _): &(PathBuf, PathBuf, Vec<u8>)| fs::rename(begun, path);
    let written = files.iter().try_for_each(write).and_then(|()| files.iter().try_for_each(finish));
    if written.is_err() {
        // The first error is the one to report.
        files.iter().for_each(|(begun, ..)| drop(fs::remove_file(begun)));
    }
    written.map_err(failed)
}

fn tensors(adapter: &AdapterFile) -> std::result::Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut stored: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (module, tensors) in &adapter.modules {
        let LoraTensors { rank, a, b, magnitude, .. } = tensors;
        let mut add = |suffix: &str, shape: Vec<usize>, values: &[f32]| {
            let bytes = match adapter.bfloat16 {
                true => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
                false => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            stored.push((format!("{PREFIX}{module}.{suffix}"), shape, bytes));
        };
        add("lora_A.weight", vec![*rank, tensors.inputs()], a);
        add("lora_B.weight", vec![tensors.outputs(), *rank], b);
        if let Some(magnitude) = magnitude {
            add("lora_magnitude_vector", vec![magnitude.len()], magnitude);
        }
    }
    let dtype = if adapter.bfloat16 { Dtype::BF16 } else { Dtype::F32 };
    let views = stored.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)));
    let views: Vec<_> = views.collect::<std::result::Result<_, safetensors::SafeTensorError>>()?;
    safetensors::serialize(views, Some(HashMap::from([("format".to_owned(), "pt".to_owned())])))
}

/// The configuration: the first module's rank and alpha, and patterns for modules that differ.
fn config(adapter: &AdapterFile) -> Value {
    let alpha = |tensors: &LoraTensors| {
        let alpha = tensors.scale * tensors.rank as f64;
        // PEFT's own are whole.
        if alpha.fract() == 0.0 && alpha.abs() < 1e9 { json!(alpha as i64) } else { json!(alpha) }
    };
    let usual = adapter.modules.values().next();
    let (usual_rank, usual_alpha) = usual.map_or((8, json!(8)), |tensors| (tensors.rank, alpha(tensors)));
    let others = |value: &dyn Fn(&LoraTensors) -> Value, usual: Value| -> Map<String, Value> {
        let values = adapter.modules.iter().map(|(module, tensors)| (module.clone(), value(tensors)));
        values.filter(|(_, value)| *value != usual).collect()
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "inference_mode": true,
        "r": usual_rank,
        "lora_alpha": usual_alpha,
        "rank_pattern": others(&|tensors| json!(tensors.rank), json!(usual_rank)),
        "alpha_pattern": others(&alpha, usual_alpha.clone()),
        "target_modules": adapter.modules.keys().collect::<Vec<_>>(),
        "use_dora": adapter.modules.values().any(|tensors| tensors.magnitude.is_some()),
        "use_rslora": false,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_patterns_match_ends_of_names() {
        let module = "model.layers.10.self_attn.q_proj";
        for (pattern, matches) in [
            ("q_proj", true),
            ("self_attn.q_proj", true),
            ("proj", false),
            ("0.self_attn.q_proj", false),
            ("layers.10.self_attn.q_proj", true),
            ("layers.1..self_attn.q_proj", true),
            (module, true),
            ("a.model.layers.10.self_attn.q_proj", false),
            (r"layers\.(9|10)\..*", true),
            (r"layers\.(8|9)\..*", false),
        ] {
            let compiled = ModulePattern::new(pattern).unwrap();
            assert_eq!(compiled.is_match(module), matches, "{pattern}");
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).unwrap();
            assert_eq!(regex.is_match(module), matches, "{pattern}");
        }
    }

    #[test]
    fn expensive_module_patterns_are_refused() {
        let read = |patterns: Value| {
            let config = json!({"r": 8, "lora_alpha": 16, "rank_pattern": patterns});
            let config = Config::new(PathBuf::from("adapter_config.json"), config.as_object().unwrap().clone());
            Patterns::read(&config).err().unwrap().to_string()
        };
        let error = read(json!({r"\w{1000}{100}": 4}));
        assert!(error.contains("adapter_config.json") && error.contains("rank_pattern"), "{error}");
        let many: Map<String, Value> = (0..800).map(|i| (format!("a*{i}"), json!(4))).collect();
        let error = read(many.into());
        assert!(error.contains("rank_pattern") && error.contains("more than 256 patterns"), "{error}");
    }
}
