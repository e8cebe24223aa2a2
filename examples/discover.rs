//! Lists the models in a folder: `cargo run --release --example discover -- [FOLDER]`

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    for model in tokenflow::discover(&folder) {
        let bits = match model.quant_bits {
            0 => "not quantised".to_owned(),
            bits => format!("{bits} bits in groups of {}", model.quant_group),
        };
        println!(
            "{}\n  {}, {}, {bits}, {} file(s)",
            model.path.display(),
            model.model_type,
            model.format,
            model.num_files
        );
    }
}
