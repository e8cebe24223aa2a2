//! Llama 1 to 3.x and the many models of its shape (SmolLM2, Yi, TinyLlama, DeepSeek distillations).

use super::base;
use crate::{
    Error, Result,
    decoder::{Spec, arch::supported},
    weights::Config,
};

pub fn spec(config: &Config) -> Result<Spec> {
    refuse_experts(config)?;
    base::spec(config, "llama", None)
}

/// GGUF calls mixtures of experts "llama", too.
fn refuse_experts(config: &Config) -> Result<()> {
    match config.opt_usize("num_local_experts")?.unwrap_or(0) {
        0 => Ok(()),
        experts => Err(Error::UnsupportedArchitecture {
            architecture: format!("llama with {experts} experts"),
            supported: supported(),
        }),
    }
}
