use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use serde_json::{Map, Value};

use crate::{
    ActivationType, AdapterFile, Error, KvCacheType, LoadConfig, ModelInfo, Quantize, Result,
    backend::{cache_plan::CachePlan, local::LocalModel},
    decoder::{self, Decoder, Placement, Spec},
    engine::{Aside, Engine, Options},
    files,
    kernels::stored::StoredType,
    memory,
    text::{
        ChatTemplate, TemplateSource, TextProcessor, Tokenizer,
        added_tokens::{self, AddedTokens},
        gguf,
        lenient::heeded,
        vocabulary,
    },
    weights::{Checkpoint, Config, Store, gguf::Metadata, no_tokenizer},
};

/// Loads the model at `path` and starts its engine.
pub fn load(path: &Path, config: &LoadConfig, device: Device) -> Result<LocalModel> {
    if !files::exists(path) {
        return Err(Error::model(path, "there is no such file or directory"));
    }
    let isa = config.isa()?;
    let adapter = config.adapter_path.as_ref().map(AdapterFile::read).transpose()?;
    let checkpoint = Checkpoint::open(path)?;
    let spec = decoder::spec(&checkpoint)?;
    let device = on_device(config, &spec, device)?;
    let text = Arc::new(text(&checkpoint, config, spec.vocab_size)?);
    // A vocabulary is read by way of more than is kept of it.
    memory::trim();
    if text.tokenizer.vocab_size() > spec.vocab_size {
        let reason = format!("{} tokens for {} rows of the embedding", text.tokenizer.vocab_size(), spec.vocab_size);
        tracing::warn!(path = %path.display(), reason, "the tokenizer knows more tokens than the model");
    }
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    let stored_type = stored_type(config, &checkpoint, &device);
    let block_bytes = Decoder::block_bytes(&spec, stored_type);
    let cache = CachePlan::new(config, spec.max_positions, block_bytes)?;
    let placement = Placement {
        device,
        dtype,
        quantize: config.quantize,
        rounded: config.activation_type == ActivationType::Bf16,
        isa,
        cache_blocks: cache.blocks,
        stored_type,
    };
    let (quant_bits, quant_group) = quantization(config, &checkpoint);
    let info = ModelInfo {
        architecture: spec.architecture.to_owned(),
        vocab_size: spec.vocab_size,
        num_layers: spec.num_layers(),
        hidden_size: spec.hidden_size,
        quant_bits,
        quant_group,
        context_len: cache.context_len,
    };
    let progress = |layers, total| {
        if let Some(progress) = &config.progress {
            progress.call(layers, total);
        }
    };
    let decoder = Decoder::load(&checkpoint, spec, &placement, progress)?;
    let options = Options {
        name: info.architecture.clone(),
        context_len: cache.context_len,
        vocab_size: info.vocab_size,
        queue_limit: config.queue_limit,
        stream_buffer: config.stream_buffer,
        threads: config.threads,
        isa,
        limits: cache.limits(config),
        weight_bytes: decoder.weight_bytes(),
        block_bytes,
    };
    let network = decoder.network().clone();
    let engine = Engine::start(Box::new(decoder), text.clone(), options)?;
    let aside = network.is_on_cpu().then(|| Aside::new(&network, text.clone(), &engine));
    if let Some(adapter) = adapter {
        if aside.is_none() {
            return Err(Error::config("adapter_path", "only models on the CPU take adapters"));
        }
        engine.adapters.set_default(network.sites().resolve(&adapter)?)?;
    }
    tracing::info!(path = %path.display(), ?info, "loaded a model");
    drop(checkpoint);
    memory::trim();
    Ok(LocalModel::new(info, text, engine, aside))
}

/// The device all layers run on: splitting them is not possible, leaving it aside is.
fn on_device(config: &LoadConfig, spec: &Spec, device: Device) -> Result<Device> {
    match config.gpu_layers {
        None => Ok(device),
        Some(0) => Ok(Device::Cpu),
        Some(layers) if layers >= spec.num_layers() && !device.is_cpu() => Ok(device),
        Some(layers) if device.is_cpu() => {
            Err(Error::config("gpu_layers", format!("{layers} layers, and the cpu backend has no device for them")))
        }
        Some(layers) => {
            let reason =
                format!("{layers} of {} layers: a model is on the device as a whole or not", spec.num_layers());
            Err(Error::config("gpu_layers", reason))
        }
    }
}

/// Bits per weight and weights per scale once the model is loaded.
fn quantization(config: &LoadConfig, checkpoint: &Checkpoint) -> (u32, u32) {
    match (checkpoint.quantization(), config.quantize) {
        ((0, 0), Some(Quantize::Int8)) => (8, 32),
        ((0, 0), Some(Quantize::Int4)) => (4, 32),
        (stored, _) => stored,
    }
}

/// Whether products round activations, so that the cache need not be more exact.
fn rounds_activations(config: &LoadConfig, checkpoint: &Checkpoint) -> bool {
    let quantized_file = matches!(checkpoint.store, Store::Gguf(_)) && checkpoint.quantization() != (0, 0);
    config.quantize.is_some() || quantized_file || config.activation_type == ActivationType::Bf16
}

/// What keys and values are stored as.
fn stored_type(config: &LoadConfig, checkpoint: &Checkpoint, device: &Device) -> StoredType {
    match config.kv_cache_type {
        Some(KvCacheType::F32) => StoredType::F32,
        Some(KvCacheType::F16) => StoredType::F16,
        Some(KvCacheType::Bf16) => StoredType::Bf16,
        Some(KvCacheType::Int8) => StoredType::Int8,
        None if !device.is_cpu() => StoredType::Bf16,
        None if rounds_activations(config, checkpoint) => StoredType::F16,
        None => StoredType::F32,
    }
}

/// `vocab_size`: ids that the model has room for.
fn text(checkpoint: &Checkpoint, config: &LoadConfig, vocab_size: usize) -> Result<TextProcessor> {
    let mut found = match &checkpoint.store {
        Store::Gguf(file) => {
            let tokenizer = gguf::tokenizer(&file.path, &file.metadata)?;
            let token = |key| {
                let id = heeded(file.metadata.opt_u32(key));
                id.and_then(|id| tokenizer.token_of(id)).unwrap_or_default()
            };
            TextParts {
                bos_token: token("tokenizer.ggml.bos_token_id"),
                eos_token: token("tokenizer.ggml.eos_token_id"),
                end_ids: gguf::end_ids(&file.metadata, &tokenizer),
                template: gguf_template(&file.path, &file.metadata),
                tokenizer,
            }
        }
        Store::Safetensors(_) => directory_text(checkpoint, vocab_size)?,
    };
    let replaces = config.chat_template.clone().map(|source| FoundTemplate::new(&checkpoint.path, Ok(source.into())));
    let is_own = replaces.is_none();
    let template = replaces.or(found.template);
    let end_of_text = found.tokenizer.id_of(&found.eos_token);
    let named = [end_of_text, found.tokenizer.id_of(&found.bos_token)];
    let ids: Vec<u32> = found.end_ids.iter().copied().chain(named.into_iter().flatten()).collect();
    let sources = template.iter().filter_map(|template| template.source.as_ref().ok());
    let sources = sources.flat_map(|source| [Some(&source.default), source.tool_use.as_ref()]);
    found.tokenizer.control_also(&ids, sources.flatten().map(String::as_str));
    let template = match template.map(|template| template.parse(found.bos_token, found.eos_token)).transpose() {
        Ok(template) => template,
        // The model can do all else.
        Err(error) if is_own => {
            tracing::warn!(%error, "the chat template cannot be used");
            Some(ChatTemplate::unusable(error))
        }
        Err(Error::InvalidModel { reason, .. }) => return Err(Error::config("chat_template", reason)),
        Err(error) => return Err(error),
    };
    Ok(TextProcessor { tokenizer: found.tokenizer, template, end_ids: found.end_ids, end_of_text })
}

/// What a model's files say about text.
struct TextParts {
    tokenizer: Tokenizer,
    template: Option<FoundTemplate>,
    bos_token: String,
    eos_token: String,
    end_ids: Vec<u32>,
}

fn directory_text(checkpoint: &Checkpoint, vocab_size: usize) -> Result<TextParts> {
    let dir = &checkpoint.path;
    let mut config = added_tokens::config(dir)?;
    let path = dir.join("tokenizer.json");
    let tokenizer = if files::exists(&path) {
        let known = config.clone().unwrap_or_else(|| Config::new(dir.join("tokenizer_config.json"), Map::new()));
        Tokenizer::read(&path, AddedTokens::read_leniently(dir, &known)?.below(vocab_size))?
    } else if vocabulary::is_there(dir) {
        let known = vocabulary::config(dir, config);
        let tokenizer = vocabulary::tokenizer(dir, &known)?;
        config = Some(known);
        tokenizer
    } else {
        return Err(no_tokenizer(dir));
    };
    let eos_token = special_token(config.as_ref(), "eos_token")?;
    let generation = Config::read_if_there(&dir.join("generation_config.json"))?;
    let mut end_ids: Vec<u32> = [Some(&checkpoint.config), generation.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|config| known_ids(config, "eos_token_id", vocab_size))
        .collect();
    let ends = ["eot_token", "eom_token"].map(|key| heeded(special_token(config.as_ref(), key)));
    end_ids.extend(ends.iter().chain([&eos_token]).filter_map(|token| tokenizer.id_of(token)));
    end_ids.sort_unstable();
    end_ids.dedup();
    Ok(TextParts {
        template: directory_template(dir, config.as_ref())?,
        bos_token: special_token(config.as_ref(), "bos_token")?,
        eos_token,
        end_ids,
        tokenizer,
    })
}

/// An id or a list of ids, without those that the model has not.
fn known_ids(config: &Config, key: &str, vocab_size: usize) -> Vec<u32> {
    let values = match config.get(key) {
        None => &[][..],
        Some(Value::Array(values)) => values,
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value: &Value| value.as_u64().filter(|id| *id < vocab_size as u64).map(|id| id as u32);
    let ids: Vec<u32> = values.iter().filter_map(id).collect();
    if ids.len() < values.len() {
        let why = format!("not ids below {vocab_size}, all of them: what is none is ignored");
        tracing::warn!("{}", config.bad(key, &why));
    }
    ids
}

/// The text of a special token, which `tokenizer_config.json` gives as text or as an object.
fn special_token(config: Option<&Config>, key: &str) -> Result<String> {
    let Some(config) = config else { return Ok(String::new()) };
    let token = added_tokens::special_token(config, key)?;
    Ok(token.map(|token| token.content).unwrap_or_default())
}

/// A chat template, or why it cannot be read, and its file.
struct FoundTemplate {
    path: PathBuf,
    source: Result<TemplateSource>,
}

impl FoundTemplate {
    fn new(path: &Path, source: Result<TemplateSource>) -> Self {
        Self { path: path.to_owned(), source }
    }

    fn parse(self, bos_token: String, eos_token: String) -> Result<ChatTemplate> {
        ChatTemplate::new(&self.path, self.source?, bos_token, eos_token)
    }
}

fn gguf_template(path: &Path, metadata: &Metadata) -> Option<FoundTemplate> {
    let default = heeded(metadata.opt_str("tokenizer.chat_template"))?.to_owned();
    let tool_use = heeded(metadata.opt_str("tokenizer.chat_template.tool_use")).map(str::to_owned);
    Some(FoundTemplate::new(path, Ok(TemplateSource { default, tool_use })))
}

/// The chat template: a file of its own, or in the tokenizer's configuration. What is no regular file, or too large,
/// is an error at once.
fn directory_template(dir: &Path, config: Option<&Config>) -> Result<Option<FoundTemplate>> {
    let path = dir.join("chat_template.jinja");
    if files::exists(&path) {
        let default = template_file(&path)?;
        let tool_use = dir.join("additional_chat_templates/tool_use.jinja");
        let tool_use = if files::exists(&tool_use) { Some(template_file(&tool_use)?) } else { None };
        let source = default.and_then(|default| Ok(TemplateSource { default, tool_use: tool_use.transpose()? }));
        return Ok(Some(FoundTemplate::new(&path, source)));
    }
    let path = dir.join("chat_template.json");
    Ok(match Config::read_if_there(&path) {
        Ok(None) => config.and_then(|config| named_template(&dir.join("tokenizer_config.json"), config)),
        Ok(Some(config)) => named_template(&path, &config),
        Err(error) => {
            files::open(&path)?;
            Some(FoundTemplate::new(&path, Err(error)))
        }
    })
}

/// The text of a file, or why it is none.
fn template_file(path: &Path) -> Result<Result<String>> {
    let bytes = files::read_limited(path, files::MAX_TEMPLATE)?;
    Ok(String::from_utf8(bytes).map_err(|error| Error::model_because(path, "is not UTF-8", error)))
}

/// A template, or of several by name the ones called "default" and "tool_use".
fn named_template(path: &Path, config: &Config) -> Option<FoundTemplate> {
    let value = config.get("chat_template")?;
    if let Some(source) = value.as_str() {
        return Some(FoundTemplate::new(path, Ok(source.to_owned().into())));
    }
    let entries = value.as_array().map_or(&[][..], Vec::as_slice);
    let named = |name: &str| {
        let entry = entries.iter().find(|entry| entry.get("name").is_some_and(|found| found == name));
        entry.and_then(|entry| entry.get("template")?.as_str()).map(str::to_owned)
    };
    let default = named("default").ok_or_else(|| config.bad("chat_template", "has no default template"));
    let source = default.map(|default| TemplateSource { default, tool_use: named("tool_use") });
    Some(FoundTemplate::new(path, source))
}
