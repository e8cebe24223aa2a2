//! Continues many prompts in shared forward passes: `cargo run --release --example batch -- [--model PATH]`

#[path = "support/mod.rs"]
mod support;

use tokenflow::{GenerateConfig, LoadConfig, load_model};

#[tokio::main]
async fn main() -> support::Result<()> {
    let args = support::Args::parse()?;
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let prompts = ["The three primary colours are", "Water boils at", "The opposite of hot is", "One, two, three,"];
    for (prompt, result) in
        prompts.iter().zip(model.batch_generate(&prompts, GenerateConfig::new().max_tokens(16)).await?)
    {
        println!("{prompt}{}\n", result.text());
        if let Some(error) = result.err {
            eprintln!("  ended early: {error}");
        }
    }
    let metrics = model.metrics();
    let rate = metrics.generated_tokens as f64 / metrics.total_duration.as_secs_f64();
    eprintln!("{} tokens in {:.1?}, {rate:.1} tokens/s", metrics.generated_tokens, metrics.total_duration);
    model.close().await?;
    Ok(())
}
