//! Labels reviews as positive or negative: `cargo run --release --example classify -- --help`

use tokenflow::{GenerateConfig, LoadConfig, load_model};
use tokenflow_examples::{Args, Result, Usage};

const USAGE: Usage = Usage {
    about: "Labels four reviews as positive or negative: the likeliest token after two examples and the review.",
    command: "cargo run --release --example classify --",
    words: "",
    model: true,
    options: &[],
};

const REVIEWS: [&str; 4] = [
    "I loved every minute of it.",
    "A waste of time and money.",
    "The best film of the year!",
    "Dull and far too long.",
];

/// Two labeled examples. All prompts begin with them, and the model computes them once.
const EXAMPLES: &str = "Review: Great fun.\nSentiment: positive\nReview: Terrible acting.\nSentiment: negative\n";

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let prompts = REVIEWS.map(|review| format!("{EXAMPLES}Review: {review}\nSentiment:"));
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let results = model.classify(&prompts, GenerateConfig::new().logprobs(3)).await?;
    for (review, result) in REVIEWS.iter().zip(results) {
        let probability = result.token.logprobs.map_or(0.0, |logprobs| logprobs.logprob.exp());
        println!("{review:32} →{} ({:.0}%)", result.token.text, probability * 100.0);
    }
    model.close().await?;
    Ok(())
}
