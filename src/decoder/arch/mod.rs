//! The architectures: each a function from a model's configuration to a [`Spec`].

mod base;
mod llama;
mod mistral;
mod qwen;
mod rope;
mod smollm3;

use super::Spec;
use crate::{Error, Result, weights::Config};

/// Reads one architecture's configuration.
type ReadSpec = fn(&Config) -> Result<Spec>;

/// The `model_type` of each architecture and what reads it.
const ARCHITECTURES: [(&str, ReadSpec); 5] = [
    ("llama", llama::spec),
    ("mistral", mistral::spec),
    ("qwen2", qwen::qwen2),
    ("qwen3", qwen::qwen3),
    ("smollm3", smollm3::spec),
];

/// The architectures that are there.
pub fn supported() -> Vec<String> {
    ARCHITECTURES.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// What the model with this configuration is.
pub fn spec(config: &Config) -> Result<Spec> {
    let architecture = config.opt_str("model_type")?.ok_or_else(|| config.bad("model_type", "is missing"))?;
    match ARCHITECTURES.iter().find(|(name, _)| *name == architecture) {
        Some((_, read)) => read(config),
        None => Err(Error::UnsupportedArchitecture { architecture: architecture.into(), supported: supported() }),
    }
}

/// Refuses layers that do not attend to everything; no published model of these architectures has any.
fn refuse_windows(config: &Config) -> Result<()> {
    if config.bool_or("use_sliding_window", false)? {
        return Err(config.bad("use_sliding_window", "sliding windows are not supported"));
    }
    let layers = config.get("layer_types").and_then(|layers| layers.as_array());
    match layers.into_iter().flatten().find(|layer| *layer != "full_attention") {
        Some(layer) => Err(config.bad("layer_types", &format!("{layer} is not supported"))),
        None => Ok(()),
    }
}
