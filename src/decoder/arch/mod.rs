//! The architectures: each a function from a model's configuration to a [`Spec`].

mod base;
mod llama;
mod qwen;
mod rope;

use super::Spec;
use crate::{Error, Result, weights::Config};

/// Reads one architecture's configuration.
type ReadSpec = fn(&Config) -> Result<Spec>;

/// The `model_type` of each architecture and what reads it.
const ARCHITECTURES: [(&str, ReadSpec); 3] = [("llama", llama::spec), ("qwen2", qwen::qwen2), ("qwen3", qwen::qwen3)];

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
