//! Lists the models in a folder: `cargo run --release --example discover -- --help`

use tokenflow_examples::{Args, Result, Usage};

const USAGE: Usage = Usage {
    about: "Lists the models in a folder and in the folders right below it.",
    command: "cargo run --release --example discover --",
    words: "[FOLDER]",
    model: false,
    options: &[],
};

fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let folder = args.text().unwrap_or(".");
    let models: Vec<_> = tokenflow::try_discover(folder)?.collect();
    if models.is_empty() {
        println!(
            "There are no models in {folder} or in the folders right below it: no GGUF file, and no folder with a \
             config.json and safetensors files."
        );
    }
    for model in models {
        let bits = match model.quant_bits {
            0 => "not quantized".to_owned(),
            bits => format!("{bits} bits in groups of {}", model.quant_group),
        };
        let files = if model.num_files == 1 { "file" } else { "files" };
        let (path, num_files) = (model.path.display(), model.num_files);
        println!("{path}\n  {}, {}, {bits}, {num_files} {files}", model.model_type, model.format);
    }
    Ok(())
}
