//! Teaches a model something new: `cargo run --release --example finetune -- [--model PATH] [DATA.jsonl]`
//!
//! A line of the data is `{"text": …}` or `{"messages": […]}`. Without any, the model learns about the island of Veldra,
//! which takes SmolLM2 about two minutes on two cores. The adapter is written to `adapter/` and the losses to `loss.png`;
//! `adapter/checkpoints/` lets it go on where it was interrupted.

#[path = "support/mod.rs"]
mod support;

use std::{fs, path::Path};

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use serde::Deserialize;
use tokenflow::{
    GenerateConfig, LoadConfig, LoraConfig, Message, Schedule, TextModel, TrainConfig, TrainExample, TrainStream,
    load_trainable,
};

const VELDRA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/finetune.jsonl");
const OUT: &str = "adapter";

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Chat { messages: Vec<Message> },
    Text { text: String },
}

#[tokio::main]
async fn main() -> support::Result<()> {
    let args = support::Args::parse()?;
    let lines = read(Path::new(args.text().unwrap_or(VELDRA)))?;
    let model = load_trainable(args.model().await?, LoadConfig::new()).await?;

    println!("before:");
    sample(&*model, &lines[0]).await?;
    let adapter = model.apply_lora(LoraConfig::new().rank(8).target_keys(["all-linear"]))?;
    println!("{} numbers to learn, from {} examples", adapter.total_params(), lines.len());
    let config = TrainConfig::new()
        .epochs(12)
        .learning_rate(1e-3)
        .schedule(Schedule::Cosine)
        .warmup_steps(5)
        .checkpoint_every(10)
        .checkpoint_dir(Path::new(OUT).join("checkpoints"));
    let examples = lines.iter().map(|line| match line {
        Line::Chat { messages } => TrainExample::chat(messages.clone()),
        Line::Text { text } => TrainExample::text(text),
    });
    let losses = learn(model.train(examples.collect(), config)).await?;
    adapter.save(OUT.as_ref())?;
    if !losses.is_empty() {
        draw(&losses, "loss.png")?;
    }
    println!("the adapter is in {OUT}/, the losses are in loss.png; after:");
    sample(&*model, &lines[0]).await?;
    model.close().await?;
    Ok(())
}

fn read(path: &Path) -> support::Result<Vec<Line>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(i, line)| {
        serde_json::from_str(line).map_err(|error| format!("{}, line {}: {error}", path.display(), i + 1).into())
    });
    let lines: Vec<Line> = lines.collect::<support::Result<_>>()?;
    if lines.is_empty() { Err(format!("{} has no examples", path.display()).into()) } else { Ok(lines) }
}

/// Shows what the model makes of the beginning of an example.
async fn sample(model: &dyn TextModel, line: &Line) -> support::Result<()> {
    let config = GenerateConfig::new().max_tokens(40);
    let (asked, answer) = match line {
        Line::Chat { messages } => {
            let asked = messages.split_last().map_or(&messages[..], |(_, asked)| asked);
            (asked.last().map_or("", |message| &message.content).to_owned(), model.chat(asked, config))
        }
        Line::Text { text } => {
            let asked: Vec<&str> = text.split_inclusive(' ').take(6).collect();
            (asked.concat(), model.generate(&asked.concat(), config))
        }
    };
    println!("  {asked}\n  {}", answer.text().await?.trim());
    Ok(())
}

/// Follows the training, and gives the loss of each step.
async fn learn(mut training: TrainStream) -> support::Result<Vec<f32>> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}")?);
    let mut losses = Vec::new();
    while let Some(step) = training.next().await {
        bar.set_length(step.total_steps as u64);
        bar.set_position(step.step as u64);
        bar.set_message(format!("loss {:.3}, {:.0} tokens/s", step.loss, step.tokens_per_sec));
        losses.push(step.loss);
    }
    bar.finish();
    training.result()?;
    Ok(losses)
}

/// The losses as a curve, from zero up.
fn draw(losses: &[f32], path: &str) -> support::Result<()> {
    let greatest = losses.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let image = BitMapBackend::new(path, (800, 400)).into_drawing_area();
    image.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&image).margin(20).build_cartesian_2d(0..losses.len(), 0f32..greatest)?;
    chart.configure_mesh().x_labels(8).y_labels(8).draw()?;
    chart.draw_series(LineSeries::new(losses.iter().copied().enumerate(), BLUE.stroke_width(2)))?;
    image.present()?;
    Ok(())
}
