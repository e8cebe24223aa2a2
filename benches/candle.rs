//! tokenflow against candle-transformers: the same GGUF file, work and threads, in one process, runs
//! interleaved, medians shown. `cargo bench --bench candle [-- MODEL.gguf]`

#[path = "../examples/support/mod.rs"]
mod support;

use std::{path::Path, time::Instant};

use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use futures::StreamExt;
use tokenflow::{GenerateConfig, LoadConfig, TextModel, load_model};

const RUNS: usize = 3;
const PREFILL: usize = 128;
const DECODE: usize = 32;

/// Tokens per second of one run.
struct Speed {
    prefill: f64,
    decode: f64,
}

#[tokio::main]
async fn main() -> support::Result<()> {
    let path = match std::env::args().skip(1).find(|arg| !arg.starts_with("--")) {
        Some(path) => path.into(),
        None => support::smollm2_gguf().await?,
    };
    // Every run computes its prompt anew.
    let ours = load_model(&path, LoadConfig::new().prefix_cache_tokens(0)).await?;
    let mut theirs = load_candle(&path)?;
    let (mut our_runs, mut their_runs, mut together) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        our_runs.push(run_ours(&*ours).await?);
        their_runs.push(run_candle(&mut theirs)?);
        together.push(run_together(&*ours, 16).await?);
    }
    let median = |mut speeds: Vec<f64>| {
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() / 2]
    };
    let row = |name: &str, of: fn(&Speed) -> f64| {
        let (ours, theirs) = (median(our_runs.iter().map(of).collect()), median(their_runs.iter().map(of).collect()));
        println!("{name:12} {ours:10.1} {theirs:10.1} {:8.1} x", ours / theirs);
    };
    println!("tokens/s      tokenflow     candle    ratio");
    row("prefill", |speed| speed.prefill);
    row("decode", |speed| speed.decode);
    println!("{:12} {:10.1}", "decode, 16", median(together));
    ours.close().await?;
    Ok(())
}

/// A prompt of about [`PREFILL`] tokens that no end of text follows.
fn prompt() -> String {
    "one two three four ".repeat(PREFILL / 4)
}

async fn run_ours(model: &dyn TextModel) -> support::Result<Speed> {
    let mut stream = model.generate(&prompt(), GenerateConfig::new().max_tokens(DECODE));
    while stream.next().await.is_some() {}
    let metrics = stream.metrics();
    Ok(Speed { prefill: metrics.prefill_tokens_per_sec, decode: metrics.decode_tokens_per_sec })
}

async fn run_together(model: &dyn TextModel, streams: usize) -> support::Result<f64> {
    let prompts = vec!["one two three four"; streams];
    model.batch_generate(&prompts, GenerateConfig::new().max_tokens(DECODE)).await?;
    let metrics = model.metrics();
    Ok(metrics.generated_tokens as f64 / metrics.total_duration.as_secs_f64())
}

fn load_candle(path: &Path) -> support::Result<ModelWeights> {
    let mut file = std::fs::File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    Ok(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
}

fn run_candle(model: &mut ModelWeights) -> support::Result<Speed> {
    let tokens: Vec<u32> = (0..PREFILL as u32).map(|i| 500 + i * 37).collect();
    let start = Instant::now();
    let mut logits = model.forward(&Tensor::new(tokens.as_slice(), &Device::Cpu)?.unsqueeze(0)?, 0)?;
    let prefill = PREFILL as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for step in 0..DECODE {
        let next = logits.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?;
        logits = model.forward(&Tensor::new(&[next], &Device::Cpu)?.unsqueeze(0)?, PREFILL + step)?;
    }
    Ok(Speed { prefill, decode: DECODE as f64 / start.elapsed().as_secs_f64() })
}
