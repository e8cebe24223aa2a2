//! Continues a prompt: `cargo run --release --example generate -- --help`

use std::io::Write;

use futures::StreamExt;
use tokenflow::{GenerateConfig, LoadConfig, load_model};
use tokenflow_examples::{Args, Result, Usage, explain};

const USAGE: Usage = Usage {
    about: "Continues a prompt.",
    command: "cargo run --release --example generate --",
    words: "[PROMPT]",
    model: true,
    options: &[("--max-tokens N", "the longest continuation [48]")],
};

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let max_tokens = args.number("--max-tokens", 48)?;
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let prompt = args.text().unwrap_or("The capital of France is");
    print!("{prompt}");
    let mut stream = model.generate(prompt, GenerateConfig::new().max_tokens(max_tokens));
    while let Some(token) = stream.next().await {
        print!("{}", token.text);
        std::io::stdout().flush()?;
    }
    println!();
    eprintln!("[{}]", explain(stream.finish_reason()));
    if let Some(error) = stream.err() {
        return Err(error.clone().into());
    }
    model.close().await?;
    Ok(())
}
