//! Continues a prompt: `cargo run --release --example generate -- [--model PATH] [PROMPT]`

#[path = "support/mod.rs"]
mod support;

use std::io::Write;

use futures::StreamExt;
use tokenflow::{GenerateConfig, LoadConfig, load_model};

#[tokio::main]
async fn main() -> support::Result<()> {
    let args = support::Args::parse()?;
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let prompt = args.text().unwrap_or("The capital of France is");
    print!("{prompt}");
    let mut stream = model.generate(prompt, GenerateConfig::new().max_tokens(48)).into_results();
    while let Some(token) = stream.next().await {
        print!("{}", token?.text);
        std::io::stdout().flush()?;
    }
    println!();
    model.close().await?;
    Ok(())
}
