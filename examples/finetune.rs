//! Fine-tunes an adapter: `cargo run --release --example finetune -- --help`

use std::{fs, io::Write, path::Path};

use futures::StreamExt;
use serde::Deserialize;
use tokenflow::{
    GenerateConfig, LoadConfig, LoraConfig, Message, Schedule, TextModel, TrainConfig, TrainExample, TrainStream,
    load_trainable,
};
use tokenflow_examples::{Args, Picture, Result, Usage};

const USAGE: Usage = Usage {
    about: "Fine-tunes a LoRA adapter and shows an answer before and after.\n\n\
            A line of DATA.jsonl is {\"text\": ...} or {\"messages\": [...]}. Without it the model learns about the\n\
            island of Veldra, which takes SmolLM2-135M about two minutes on two cores. The adapter is written to\n\
            adapter/ and a chart of the losses to loss.svg. An interrupted training resumes from adapter/checkpoints/.",
    command: "cargo run --release --example finetune --",
    words: "[DATA.jsonl]",
    model: true,
    options: &[("--learning-rate RATE", "the greatest learning rate [0.001]")],
};

const VELDRA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/finetune.jsonl");
const OUT: &str = "adapter";

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Chat { messages: Vec<Message> },
    Text { text: String },
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let rate = args.number("--learning-rate", 1e-3)?;
    let lines = read(Path::new(args.text().unwrap_or(VELDRA)))?;
    let model = load_trainable(args.model().await?, LoadConfig::new()).await?;

    println!("before:");
    sample(&*model, &lines[0]).await?;
    let adapter = model.apply_lora(LoraConfig::new().rank(8).target_keys(["all-linear"]))?;
    println!("training {} parameters on {} examples", adapter.total_params(), lines.len());
    let config = TrainConfig::new()
        .epochs(12)
        .learning_rate(rate)
        .schedule(Schedule::Cosine)
        .warmup_steps(5)
        .checkpoint_every(10)
        .checkpoint_dir(Path::new(OUT).join("checkpoints"));
    let examples = lines.iter().map(|line| match line {
        Line::Chat { messages } => TrainExample::chat(messages.clone()),
        Line::Text { text } => TrainExample::text(text),
    });
    let losses = train(model.train(examples.collect(), config)).await?;
    adapter.save(OUT.as_ref())?;
    if losses.is_empty() {
        println!("{OUT}/checkpoints is of this training, which has ended; remove the folder to train anew");
    } else {
        draw(&losses).save("loss.svg")?;
        println!("the losses are in loss.svg");
    }
    println!("the adapter is in {OUT}/; after:");
    sample(&*model, &lines[0]).await?;
    model.close().await?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let form = "a line is {\"text\": ...} or {\"messages\": [{\"role\": ..., \"content\": ...}, ...]}";
        let line = serde_json::from_str(line)
            .map_err(|error| format!("{}, line {}: {error}; {form}", path.display(), i + 1))?;
        lines.push(line);
    }
    if lines.is_empty() { Err(format!("{} has no examples", path.display()).into()) } else { Ok(lines) }
}

/// Prints the prompt of an example and the model's answer.
async fn sample(model: &dyn TextModel, line: &Line) -> Result<()> {
    let config = GenerateConfig::new().max_tokens(40);
    let (prompt, answer) = match line {
        Line::Chat { messages } => {
            let asked = messages.split_last().map_or(&messages[..], |(_, asked)| asked);
            (asked.last().map_or("", |message| &message.content).to_owned(), model.chat(asked, config))
        }
        Line::Text { text } => {
            let words: Vec<&str> = text.split_inclusive(' ').take(6).collect();
            (words.concat(), model.generate(&words.concat(), config))
        }
    };
    println!("  {prompt}\n  {}", answer.text().await?.trim());
    Ok(())
}

/// Shows the progress of a training, and returns the loss of each step.
async fn train(mut training: TrainStream) -> Result<Vec<f32>> {
    let mut losses = Vec::new();
    while let Some(step) = training.next().await {
        let (number, of, loss, speed) = (step.step, step.total_steps, step.loss, step.tokens_per_sec);
        print!("\rstep {number:3} of {of}, loss {loss:.3}, {speed:.0} tokens/s ");
        std::io::stdout().flush()?;
        losses.push(loss);
    }
    println!();
    training.result()?;
    Ok(losses)
}

/// The losses as a curve, from zero up.
fn draw(losses: &[f32]) -> Picture {
    const WIDTH: f64 = 800.0;
    const HEIGHT: f64 = 400.0;
    const LEFT: f64 = 50.0;
    const MARGIN: f64 = 40.0;
    let top = losses.iter().copied().fold(0.1, f32::max).ceil();
    let last = losses.len().max(2) - 1;
    let x = |step: usize| LEFT + (WIDTH - LEFT - MARGIN) * step as f64 / last as f64;
    let y = |loss: f32| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * f64::from(loss / top);
    let mut picture = Picture::new(WIDTH, HEIGHT);
    picture.text(LEFT, 20.0, "start", "loss, nats per token");
    picture.text(WIDTH / 2.0, HEIGHT - 8.0, "middle", "step");
    for tick in 0..=4 {
        let (loss, step) = (top * tick as f32 / 4.0, last * tick / 4);
        picture.line([(LEFT, y(loss)), (WIDTH - MARGIN, y(loss))], "#dddddd");
        picture.text(LEFT - 6.0, y(loss) + 4.0, "end", &format!("{loss:.2}"));
        picture.text(x(step), HEIGHT - MARGIN + 16.0, "middle", &(step + 1).to_string());
    }
    picture.line(losses.iter().enumerate().map(|(step, loss)| (x(step), y(*loss))), "#1f6feb");
    picture
}
