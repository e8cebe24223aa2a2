//! Loading of a checkpoint into an engine.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use super::{CacheBudget, CacheCosts, NativeModel};
use crate::{
    ActivationType, AdapterFile, Error, KvCacheType, LoadConfig, ModelInfo, Quantize, Result,
    decoder::{self, Decoder, Ops, Placement, Spec},
    engine::{BackgroundJobs, Engine, EngineOptions},
    files,
    kernels::{Isa, attention::KvDtype},
    memory, text,
    weights::{Checkpoint, TensorStore},
};

/// Loads the model at `path` and starts its engine.
pub fn load(path: &Path, config: &LoadConfig, device: Device) -> Result<NativeModel> {
    if !files::exists(path) {
        return Err(Error::model(path, "there is no such file or directory"));
    }
    let isa = Isa::choose(config.instruction_set)?;
    let adapter = config.adapter_path.as_ref().map(AdapterFile::read).transpose()?;
    let checkpoint = Checkpoint::open(path)?;
    let spec = decoder::spec(&checkpoint)?;
    let device = on_device(config, &spec, device)?;
    let text = Arc::new(text::load(&checkpoint, config.chat_template.as_deref(), spec.vocab_size)?);
    // A vocabulary is read by way of more than is kept of it.
    memory::trim();
    if text.tokenizer.vocab_size() > spec.vocab_size {
        let reason = format!("{} tokens for {} rows of the embedding", text.tokenizer.vocab_size(), spec.vocab_size);
        tracing::warn!(path = %path.display(), reason, "the tokenizer knows more tokens than the model");
    }
    let ops = Ops::new(device, isa);
    let kv_dtype = kv_dtype(config, &checkpoint, &ops);
    let costs = CacheCosts { block_bytes: spec.block_bytes(kv_dtype), state_bytes: spec.state_bytes() };
    let cache = CacheBudget::new(config, spec.max_positions, costs)?;
    let placement = Placement {
        ops,
        quantize: config.quantize,
        rounded: config.activation_type == ActivationType::Bf16,
        cache_size: cache.size,
        kv_dtype,
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
    let options = EngineOptions {
        name: info.architecture.clone(),
        context_len: cache.context_len,
        vocab_size: info.vocab_size,
        queue_limit: config.queue_limit,
        stream_buffer: config.stream_buffer,
        threads: config.threads,
        isa,
        limits: cache.limits(config),
        weight_bytes: decoder.weight_bytes(),
        block_bytes: costs.block_bytes,
        state_bytes: costs.state_bytes,
    };
    let network = decoder.network().clone();
    let requests = Engine::start(Box::new(decoder), text.clone(), options)?;
    let engine = &requests.executor;
    let background = network.is_on_cpu().then(|| Arc::new(BackgroundJobs::new(&network, text.clone(), engine)));
    if let Some(adapter) = adapter {
        if background.is_none() {
            return Err(Error::config("adapter_path", "only models on the CPU take adapters"));
        }
        engine.adapters.set_default(network.targets().resolve(&adapter)?)?;
    }
    tracing::info!(path = %path.display(), ?info, "loaded a model");
    drop(checkpoint);
    memory::trim();
    Ok(NativeModel::new(info, text, requests, background))
}

/// The device all layers run on: splitting them is not possible, leaving it out is.
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
    let quantized_file = matches!(checkpoint.store, TensorStore::Gguf(_)) && checkpoint.quantization() != (0, 0);
    config.quantize.is_some() || quantized_file || config.activation_type == ActivationType::Bf16
}

/// The type of cached keys and values.
fn kv_dtype(config: &LoadConfig, checkpoint: &Checkpoint, ops: &Ops) -> KvDtype {
    match config.kv_cache_type {
        Some(KvCacheType::F32) => KvDtype::F32,
        Some(KvCacheType::F16) => KvDtype::F16,
        Some(KvCacheType::Bf16) => KvDtype::Bf16,
        Some(KvCacheType::Int8) => KvDtype::Int8,
        None if !ops.uses_kernels() => KvDtype::Bf16,
        None if rounds_activations(config, checkpoint) => KvDtype::F16,
        None => KvDtype::F32,
    }
}
