//! [MLX-LM](https://github.com/ml-explore/mlx-lm)'s directories.

use std::path::Path;

use super::{
    AdapterFile,
    tensor_reader::{AdapterTensors, LoraPart},
};
use crate::{
    Error, Result,
    weights::{Config, SafetensorsDir},
};

pub fn read(path: &Path, config: &Config) -> Result<AdapterFile> {
    let dora = match config.opt_str("fine_tune_type")?.unwrap_or("lora") {
        "lora" => false,
        "dora" => true,
        _ => return Err(config.bad("fine_tune_type", "lora and dora are supported")),
    };
    let parameters = config.opt_object("lora_parameters")?;
    let parameters = parameters.ok_or_else(|| config.bad("lora_parameters", "is missing"))?;
    let (rank, scale) = (parameters.size("rank")?, parameters.opt_f64("scale")?);
    let scale = scale.ok_or_else(|| parameters.bad("scale", "is missing"))?;
    let file = SafetensorsDir::of_file(path.join("adapters.safetensors"))?;
    let scale_of = |module: &str, found: usize| {
        if found != rank {
            return Err(parameters.bad("rank", &format!("module {module} has rank {found}")));
        }
        Ok(scale)
    };
    let part = |name: &str| match name.rsplit_once('.') {
        Some((module, "lora_a")) => Ok(Some((module.to_owned(), LoraPart::A))),
        Some((module, "lora_b")) => Ok(Some((module.to_owned(), LoraPart::B))),
        Some((module, "m")) => Ok(Some((module.to_owned(), LoraPart::Magnitude))),
        _ => Err(Error::model(file.path(), format!("tensor {name} is no lora_a, lora_b or m"))),
    };
    let modules = AdapterTensors { part, scale: scale_of, transposed: true, dora, file: &file }.read()?;
    let base_model = config.opt_str("model")?.map(str::to_owned);
    Ok(AdapterFile { base_model, modules, path: path.to_owned(), bfloat16: false })
}
