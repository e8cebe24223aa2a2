//! Lists the models in a folder: `cargo run --release --example discover -- [FOLDER]`

fn main() -> tokenflow::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let models: Vec<_> = tokenflow::try_discover(&folder)?.collect();
    if models.is_empty() {
        println!("There are no models in {folder} or in the folders right below it.");
    }
    for model in models {
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
    Ok(())
}
