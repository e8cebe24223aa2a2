//! The architectures: each a function from a model's configuration to a [`Spec`].

mod base;
mod bloom;
mod cohere;
mod experts;
mod falcon;
mod fit;
mod gemma;
mod glm;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod hunyuan;
mod llama;
mod mistral;
mod nemotron;
mod olmo;
mod opt;
mod phi;
mod qwen;
mod rope_config;
mod smollm3;
mod stablelm;
mod starcoder2;
#[cfg(test)]
mod toy_hybrid;
mod unread;

use super::Spec;
use crate::{
    Error, Result,
    weights::{Checkpoint, Config, TensorStore},
};

/// Reads one architecture's configuration.
type ReadSpec = fn(&Config) -> Result<Spec>;

/// The `model_type` of each architecture and its function.
const ARCHITECTURES: &[(&str, ReadSpec)] = &[
    ("arcee", llama::arcee),
    ("bloom", bloom::bloom),
    ("cohere", cohere::cohere),
    ("cohere2", cohere::cohere2),
    ("ernie4_5", llama::ernie4_5),
    ("exaone4", olmo::exaone4),
    ("falcon", falcon::falcon),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3", gemma::gemma3),
    ("gemma3_text", gemma::gemma3),
    ("glm", glm::glm),
    ("glm4", glm::glm4),
    ("glm4_moe", glm::glm4_moe),
    ("gpt2", gpt2::gpt2),
    ("gpt_bigcode", gpt2::gpt_bigcode),
    ("gpt_neox", gpt_neox::gpt_neox),
    ("gpt_oss", gpt_oss::gpt_oss),
    ("granite", granite::granite),
    ("granitemoe", granite::granitemoe),
    ("granitemoeshared", granite::granitemoe),
    ("helium", llama::helium),
    ("hunyuan_v1_dense", hunyuan::hunyuan_v1_dense),
    ("llama", llama::llama),
    ("ministral3", mistral::ministral3),
    ("mistral", mistral::mistral),
    ("mistral3", mistral::mistral3),
    ("mixtral", mistral::mixtral),
    ("nemotron", nemotron::nemotron),
    ("olmo", olmo::olmo),
    ("olmo2", olmo::olmo2),
    ("olmo3", olmo::olmo3),
    ("olmoe", olmo::olmoe),
    ("opt", opt::opt),
    ("phi", phi::phi),
    ("phi3", phi::phi3),
    ("qwen2", qwen::qwen2),
    ("qwen2_moe", qwen::qwen2_moe),
    ("qwen3", qwen::qwen3),
    ("qwen3_moe", qwen::qwen3_moe),
    ("seed_oss", llama::seed_oss),
    ("smollm3", smollm3::smollm3),
    ("stablelm", stablelm::stablelm),
    ("starcoder2", starcoder2::starcoder2),
    #[cfg(test)]
    ("toy_hybrid", toy_hybrid::toy_hybrid),
];

/// The architectures of this version.
fn supported() -> Vec<String> {
    ARCHITECTURES.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// The [`Spec`] of a checkpoint's model.
pub fn spec(checkpoint: &Checkpoint) -> Result<Spec> {
    let config = &checkpoint.config;
    let architecture = model_type(config)?.ok_or_else(|| config.bad("model_type", "is missing"))?;
    let Some((_, read)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        return Err(Error::UnsupportedArchitecture { architecture, supported: supported() });
    };
    let spec = match checkpoint.store {
        TensorStore::Safetensors(_) => read(&unread::without(config, &architecture))?,
        TensorStore::Gguf(_) => read(config)?,
    };
    fit::to_checkpoint(spec, checkpoint)
}

/// The `model_type` of a configuration. Where it is absent, the first class in `architectures` tells it.
pub fn model_type(config: &Config) -> Result<Option<String>> {
    if let Some(name) = config.opt_str("model_type")? {
        return Ok(Some(name.to_owned()));
    }
    let Some(classes) = config.opt_strs("architectures")? else { return Ok(None) };
    let Some(class) = classes.first() else { return Ok(None) };
    let ends = ["For", "LMHead", "Model"].iter().filter_map(|end| class.rfind(end)).filter(|at| *at > 0);
    let class = class[..ends.min().unwrap_or(class.len())].to_lowercase();
    let plain = |name: &str| name.replace('_', "");
    let known = ARCHITECTURES.iter().find(|(name, _)| plain(name) == plain(&class));
    Ok(Some(match (known, class.as_str()) {
        (Some((name, _)), _) => (*name).to_owned(),
        (None, "hunyuandensev1") => "hunyuan_v1_dense".into(),
        (None, _) => class,
    }))
}
