//! Training speed beside PEFT, and the latency of requests meanwhile:
//! `cargo bench --bench training -- MODEL_DIR [--steps N]`
//!
//! MODEL_DIR is a Hugging Face directory. If the environment variable `PEFT_PYTHON` names a Python with torch,
//! transformers and PEFT, both train the same adapter on the same examples, in turn; else only tokenflow does.

#[path = "process/mod.rs"]
mod process;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde::Deserialize;
use tokenflow::{
    GenerateConfig, LoadConfig, LoraConfig, Schedule, TrainConfig, TrainExample, TrainStream, TrainableModel,
    load_trainable,
};

/// Tokens of an example; a step has two examples.
const EXAMPLE: usize = 256;
const LEARNING_RATE: f32 = 2e-4;
/// Rounds of both, interleaved.
const ROUNDS: usize = 3;

/// The figures of a finished training.
#[derive(Deserialize)]
struct Run {
    losses: Vec<f32>,
    tokens_per_second: f64,
    /// Peak memory in bytes.
    memory: f64,
}

#[tokio::main]
async fn main() -> process::Result<()> {
    let (mut steps, mut model) = (50, None);
    let mut args = process::arguments();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--steps" => steps = args.next().ok_or("--steps takes a number")?.parse()?,
            _ => model = Some(PathBuf::from(arg)),
        }
    }
    let Some(dir) = model else {
        println!("training: no model directory was given, nothing was measured");
        return Ok(());
    };
    let place = env::temp_dir().join(format!("tokenflow-training-{}", std::process::id()));
    let result = compare(&dir, steps, &place).await;
    fs::remove_dir_all(&place)?;
    result
}

async fn compare(dir: &Path, steps: usize, place: &Path) -> process::Result<()> {
    fs::create_dir_all(place)?;
    let model = load_trainable(dir, LoadConfig::new()).await?;
    let examples = examples(&*model, 2 * steps)?;
    fs::write(place.join("examples.json"), serde_json::to_vec(&examples)?)?;
    let initial = place.join("initial");
    model.apply_lora(LoraConfig::new())?.save(&initial)?;

    let python = env::var_os("PEFT_PYTHON");
    let peer = |adapter: &Path, dtype: &str, steps: usize| -> process::Result<Option<Run>> {
        let Some(python) = &python else { return Ok(None) };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("train_with_peft.py");
        let mut command = Command::new(python);
        command.args([&script, dir, adapter, &place.join("examples.json")]);
        let output = command.args([dtype, &LEARNING_RATE.to_string(), &steps.to_string()]).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    };
    println!("{:>30} {:>10} {:>10}   greatest difference of a loss", "tokens/s", "GB", "times");
    for round in 0..ROUNDS {
        // The first round compares losses over all steps; the others measure speed only.
        let steps = if round == 0 { steps } else { steps.min(10) };
        for dtype in ["float32", "bfloat16"] {
            let adapter = model.apply_lora(LoraConfig::new().initial(&initial).bfloat16(dtype == "bfloat16"))?;
            let ours = run(model.train(to_examples(&examples), config(steps))).await?;
            println!("tokenflow {dtype:9} {:10.0} {:10.2}", ours.tokens_per_second, ours.memory / 1e9);
            if round == 0 && dtype == "float32" {
                let learned = place.join("learned");
                adapter.save(&learned)?;
                if let Some(theirs) = peer(&learned, "float32", 1)? {
                    model.apply_lora(LoraConfig::new().initial(&learned))?;
                    let ours = run(model.train(to_examples(&examples), config(1))).await?;
                    println!("the trained adapter, in PEFT: loss {:.5}, here {:.5}", theirs.losses[0], ours.losses[0]);
                }
            }
            let Some(theirs) = peer(&initial, dtype, steps)? else { continue };
            let apart = ours.losses.iter().zip(&theirs.losses).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let times = ours.tokens_per_second / theirs.tokens_per_second;
            let memory = theirs.memory / 1e9;
            println!("PEFT      {dtype:9} {:10.0} {memory:10.2} {times:10.2}   {apart:.1e}", theirs.tokens_per_second);
        }
    }
    latency(&*model, &examples).await?;
    model.close().await?;
    Ok(())
}

/// The inter-token latency of a stream, alone and beside training.
async fn latency(model: &dyn TrainableModel, examples: &[Vec<u32>]) -> process::Result<()> {
    let alone = gaps(model).await;
    model.apply_lora(LoraConfig::new())?;
    let mut training = model.train(to_examples(examples), config(examples.len() / 2));
    training.next().await;
    let (begun, mut speeds) = (Instant::now(), Vec::new());
    let beside = {
        let read = async {
            while let Some(step) = training.next().await {
                speeds.push(step.tokens_per_sec)
            }
        };
        tokio::select! { beside = gaps(model) => beside, () = read => return Err("training ended early".into()) }
    };
    println!("\na stream of tokens, from one to the next:");
    for (name, gaps) in [("alone", alone), ("beside training", beside)] {
        let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!("{name:16} median {:6.1} ms, 99 in 100 {:6.1} ms, longest {:6.1} ms", at(0.5), at(0.99), at(1.0));
    }
    let speed = speeds.iter().sum::<f32>() / speeds.len().max(1) as f32;
    println!("training meanwhile: {speed:.0} tokens/s in {} steps of {:.1?}", speeds.len(), begun.elapsed());
    Ok(())
}

/// The inter-token latencies of a stream, sorted.
async fn gaps(model: &dyn TrainableModel) -> Vec<Duration> {
    let mut stream = model.generate("Once upon a time", GenerateConfig::new().max_tokens(200));
    let (mut gaps, mut last) = (Vec::new(), None::<Instant>);
    while stream.next().await.is_some() {
        gaps.extend(last.replace(Instant::now()).map(|last| last.elapsed()));
    }
    gaps.sort();
    gaps
}

/// Runs a training to its end.
async fn run(mut training: TrainStream) -> process::Result<Run> {
    let (mut losses, mut tokens, mut seconds) = (Vec::new(), 0.0, 0.0);
    while let Some(step) = training.next().await {
        if !losses.is_empty() {
            tokens += step.tokens as f64;
            seconds += step.tokens as f64 / f64::from(step.tokens_per_sec);
        }
        losses.push(step.loss);
    }
    training.result()?;
    Ok(Run { losses, tokens_per_second: tokens / seconds, memory: process::peak_bytes() as f64 })
}

fn config(steps: usize) -> TrainConfig {
    let config = TrainConfig::new().max_steps(steps).batch_size(2).shuffle(false).schedule(Schedule::Constant);
    config.learning_rate(LEARNING_RATE)
}

fn to_examples(examples: &[Vec<u32>]) -> Vec<TrainExample> {
    examples.iter().cloned().map(TrainExample::Tokens).collect()
}

/// Pieces of the project's own documents, repeated.
fn examples(model: &dyn TrainableModel, count: usize) -> process::Result<Vec<Vec<u32>>> {
    let texts = [include_str!("../README.md"), include_str!("../CHANGELOG.md"), include_str!("../CONTRIBUTING.md")];
    let tokens = model.encode(&texts.concat())?;
    let mut tokens = tokens.iter().copied().cycle();
    Ok((0..count).map(|_| tokens.by_ref().take(EXAMPLE).collect()).collect())
}
