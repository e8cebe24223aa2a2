//! Continues many prompts in shared forward passes: `cargo run --release --example batch -- --help`

use tokenflow::{GenerateConfig, LoadConfig, load_model};
use tokenflow_examples::{Args, Result, Usage};

const USAGE: Usage = Usage {
    about: "Continues four prompts in shared forward passes.",
    command: "cargo run --release --example batch --",
    words: "",
    model: true,
    options: &[],
};

const PROMPTS: [&str; 4] =
    ["The three primary colors are", "Water boils at", "The opposite of hot is", "One, two, three,"];

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let results = model.batch_generate(&PROMPTS, GenerateConfig::new().max_tokens(16)).await?;
    for (prompt, result) in PROMPTS.iter().zip(results) {
        println!("{prompt}{}\n", result.text());
        if let Some(error) = result.err {
            eprintln!("  ended early: {error}");
        }
    }
    let metrics = model.metrics();
    let rate = metrics.generated_tokens as f64 / metrics.total_duration.as_secs_f64();
    eprintln!("[{} tokens in {:.1?}, {rate:.1} tokens/s]", metrics.generated_tokens, metrics.total_duration);
    model.close().await?;
    Ok(())
}
