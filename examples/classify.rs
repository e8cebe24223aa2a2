//! Sorts reviews by which answer the model finds likelier: `cargo run --release --example classify -- [--model PATH]`

#[path = "support/mod.rs"]
mod support;

use tokenflow::{GenerateConfig, LoadConfig, load_model};

#[tokio::main]
async fn main() -> support::Result<()> {
    let args = support::Args::parse()?;
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let reviews = [
        "I loved every minute of it.",
        "A waste of time and money.",
        "The best film of the year!",
        "Dull and far too long.",
    ];
    let prompts: Vec<String> = reviews
        .iter()
        .map(|review| format!("Review: Great fun.\nSentiment: positive\nReview: Terrible acting.\nSentiment: negative\nReview: {review}\nSentiment:"))
        .collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let results = model.classify(&prompts, GenerateConfig::new().logprobs(3)).await?;
    for (review, result) in reviews.iter().zip(results) {
        let probability = result.token.logprobs.map_or(0.0, |logprobs| logprobs.logprob.exp());
        println!("{review:32} →{} ({:.0}%)", result.token.text, probability * 100.0);
    }
    model.close().await?;
    Ok(())
}
