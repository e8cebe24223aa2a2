//! Formats of directories that cannot be read, by name.

use std::path::Path;

use safetensors::Dtype;

use super::{hf_config::Config, safetensors::SafetensorsDir};
use crate::{Error, Result, files};

/// Values of `quant_method` whose tensors are known.
const METHODS: [&str; 4] = ["awq", "fp8", "gptq", "mxfp4"];

/// How names of tensors end in other formats, where no configuration names them.
const MARKERS: [(&str, &str); 14] = [
    (".weight_scale_2", "NVFP4, as NVIDIA's ModelOpt writes it"),
    (".weight_packed", "compressed-tensors"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes, 4 bits"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes, 4 bits"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".SCB", "bitsandbytes, 8 bits"),
    (".W_q", "HQQ"),
    (".codebooks", "AQLM"),
    (".weight_scales", "EETQ"),
    ("._data", "quanto"),
    ("weight_qdata", "torchao"),
    (".centroids.weight", "VPTQ"),
    (".q_weight", "EXL2"),
    (".trellis", "EXL3"),
];

const ADVICE: &str = "this format is not supported: of quantized weights GPTQ, AWQ, FP8, MXFP4, MLX and GGUF are; the \
    model's original weights or a GGUF file of it will load";

/// Refuses weights in a format that is not supported, by its name. Weights that are whole floats are read whatever the
/// configuration says of them.
pub fn check(config: &Config, dir: &SafetensorsDir) -> Result<()> {
    if config.get("quantization").is_some() || !dir.entries().any(is_packed) {
        return Ok(());
    }
    if let Some(quantization) = config.opt_object("quantization_config")?
        && let Some(method) = quantization.opt_str("quant_method")?
    {
        if !METHODS.contains(&method) {
            let kind =
                ["format", "quant_algo", "quant_type"].into_iter().find_map(|key| quantization.get(key)?.as_str());
            let kind = kind.map(|kind| format!("{kind:?}: ")).unwrap_or_default();
            return Err(quantization.bad("quant_method", &format!("{kind}{ADVICE}")));
        }
        let key = "checkpoint_format";
        if quantization.opt_str(key)?.is_some_and(|format| !matches!(format, "gptq" | "gptq_v2" | "gemm")) {
            return Err(quantization.bad(key, ADVICE));
        }
        return Ok(());
    }
    let path = dir.path().with_file_name("hf_quant_config.json");
    if let Some(file) = Config::read_if_there(&path)?
        && let Some(quantization) = file.opt_object("quantization")?
        && quantization.get("quant_algo").is_some()
    {
        return Err(quantization.bad("quant_algo", ADVICE));
    }
    let ends = |name: &str| MARKERS.iter().find(|(end, _)| name.ends_with(end));
    match dir.names().find_map(|name| Some((name, ends(name)?))) {
        Some((name, (_, format))) => {
            Err(Error::model(dir.path(), format!("tensor {name} is one of {format}: {ADVICE}")))
        }
        None => Ok(()),
    }
}

/// Whether a tensor may hold codes of weights: whole numbers, but no mask or list of positions.
fn is_packed((name, dtype, shape): (&str, Dtype, &[usize])) -> bool {
    let whole = matches!(
        dtype,
        Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64
    );
    let buffer = [".bias", ".masked_bias", "position_ids", ".attn_mask"].iter().any(|end| name.ends_with(end));
    whole && !buffer && shape.iter().product::<usize>() > 1
}

/// The error of a directory without a `config.json` that holds something else.
pub fn no_config(dir: &Path) -> Option<Error> {
    let names = names(dir);
    let has = |name: &str| names.iter().any(|found| found == name);
    let reason = if has("adapter_config.json") {
        "holds an adapter and no model: load the model that it was made for, with this directory as adapter_path".into()
    } else if let Some(gguf) = names.iter().find(|name| name.ends_with(".gguf")) {
        format!("holds no config.json; {gguf} is a model of its own: load that file")
    } else if has("params.json") {
        "holds a params.json and no config.json: the layout of Meta or Mistral, which their conversion scripts in \
         transformers (convert_…_weights_to_hf) make a Hugging Face directory of"
            .into()
    } else {
        return None;
    };
    Some(Error::model(dir, reason))
}

/// The error of a directory without `*.safetensors` files, with advice.
pub fn no_weights(dir: &Path) -> Error {
    const SAVE: &str = "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) of Python's transformers writes \
        safetensors";
    let kinds: [(&[&str], &str); 8] = [
        (&[".gguf"], "is a model of its own: load that file"),
        (&[".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"], "holds pickles, which can run code and are not read"),
        (&[".npz"], "holds weights of MLX's first layout; mlx_lm.convert writes safetensors"),
        (&[".msgpack"], "holds weights of Flax"),
        (&[".h5"], "holds weights of TensorFlow"),
        (&[".onnx"], "is a graph of ONNX, which is no model here"),
        (&[".nemo"], "is an archive of NeMo, which is no model here"),
        (&[".safetensors"], "is in its authors' own layout or an adapter"),
    ];
    let names = names(dir);
    let found = kinds.iter().find_map(|(ends, what)| {
        let name = names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)))?;
        Some(format!("; {name} {what}"))
    });
    let advice = if found.is_some() { format!(" ({SAVE})") } else { String::new() };
    Error::model(dir, format!("holds no *.safetensors file{}{advice}", found.unwrap_or_default()))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().into_iter().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The error of a directory without a tokenizer that can be read.
pub fn no_tokenizer(dir: &Path) -> Error {
    let path = dir.join("tokenizer.json");
    let known = ["tokenizer.model", "spiece.model", "tekken.json", "qwen.tiktoken", "tokenizer.tiktoken", "vocab.txt"];
    let found = known.into_iter().find(|name| files::exists(&dir.join(name)));
    let reason = match found {
        Some(name) => format!(
            "there is no such file, only {name}: AutoTokenizer.from_pretrained(…).save_pretrained(…) of Python's \
             transformers writes it"
        ),
        None => "there is no such file, and no vocab.json with a merges.txt".into(),
    };
    Error::model(path, reason)
}
