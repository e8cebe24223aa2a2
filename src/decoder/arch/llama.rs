//! Llama 1 to 3.x and the many models of its shape (SmolLM2, Yi, TinyLlama, DeepSeek distillations).

use super::{base, mistral};
use crate::{Result, decoder::Spec, weights::Config};

pub fn llama(config: &Config) -> Result<Spec> {
    // GGUF calls mixtures of experts "llama", too.
    match config.opt_usize("num_local_experts")?.unwrap_or(0) {
        0 => base::spec(config, "llama"),
        _ => mistral::mixtral(config),
    }
}
