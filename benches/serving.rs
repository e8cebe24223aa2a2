//! One model that serves many requests: `cargo bench --bench serving -- [--json FILE] [MODEL]`
//!
//! Prints a table and writes the same figures as JSON. Each figure is the median of several runs.

#[path = "process/mod.rs"]
mod process;

use std::{
    cell::Cell,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all};
use serde_json::{Map, json};
use tokenflow::{GenerateConfig, LoadConfig, Message, ModelStats, TextModel, TokenStream, load_model};
use tokio::sync::Notify;

const RUNS: usize = 5;
/// Tokens of each answer.
const ANSWER: usize = 48;

/// Figures by name.
#[derive(Default)]
struct Report(Map<String, serde_json::Value>);

impl Report {
    fn add(&mut self, name: &str, mut runs: Vec<f64>, unit: &str) {
        runs.sort_by(f64::total_cmp);
        let median = runs[runs.len() / 2];
        println!("{name:58} {median:10.2} {unit}");
        self.0.insert(name.to_owned(), json!({ "median": median, "unit": unit, "runs": runs }));
    }
}

#[tokio::main]
async fn main() -> process::Result<()> {
    let (mut json, mut path) = (None, None);
    let mut args = process::arguments();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = Some(PathBuf::from(args.next().ok_or("--json takes a file")?)),
            _ => path = Some(PathBuf::from(arg)),
        }
    }
    let path = match path {
        Some(path) => path,
        None => tokenflow_examples::smollm2_gguf().await?,
    };
    // Prefix caching is off, so that runs are alike; one measurement below turns it on.
    let config = || LoadConfig::new().prefix_cache_tokens(0);
    let model: Arc<dyn TextModel> = Arc::from(load_model(&path, config()).await?);
    let mut report = Report::default();
    report.add("resident memory, loaded", vec![process::resident_bytes() as f64 / 1e6], "MB");
    prefill(&*model, &mut report).await?;
    for streams in [1, 4, 16, 64] {
        decode(&*model, streams, &mut report).await;
    }
    chats(&*model, 1, &mut report).await;
    chats(&*model, 16, &mut report).await;
    burst(&*model, &mut report).await;
    copy(&*model, &mut report).await;
    long_prompt_among_streams(&*model, &mut report).await;
    newcomer_among_streams(&*model, &mut report).await;
    cancel(&*model, &mut report).await;
    idle(&mut report).await;
    report.add("resident memory, at the end", vec![process::resident_bytes() as f64 / 1e6], "MB");
    model.close().await?;
    shared_head(&*load_model(&path, LoadConfig::new()).await?, &mut report).await?;
    if let Some(json) = json {
        fs::write(json, serde_json::to_string_pretty(&report.0)?)?;
    }
    Ok(())
}

/// About `tokens` tokens of text, different for each `salt`.
fn prompt(tokens: usize, salt: usize) -> String {
    format!("{salt}: ") + &"one two three four ".repeat(tokens / 4)
}

/// An answer that does not end early.
fn endless(max_tokens: usize) -> GenerateConfig {
    GenerateConfig::new().max_tokens(max_tokens).temperature(1.0).seed(1)
}

async fn read(stream: &mut TokenStream) -> usize {
    let mut tokens = 0;
    while stream.next().await.is_some() {
        tokens += 1;
    }
    tokens
}

async fn prefill(model: &dyn TextModel, report: &mut Report) -> process::Result<()> {
    let mut speeds = Vec::new();
    for run in 0..RUNS {
        model.classify(&[&prompt(512, run)], GenerateConfig::new()).await?;
        speeds.push(model.metrics().prefill_tokens_per_sec);
    }
    report.add("prefill, 512 tokens", speeds, "tokens/s");
    Ok(())
}

/// Decoding of streams, from the moment when all have started.
async fn decode(model: &dyn TextModel, count: usize, report: &mut Report) {
    let (mut speeds, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..RUNS.min(128 / count) {
        let mut streams: Vec<_> = (0..count).map(|i| model.generate(&prompt(8, i), endless(ANSWER))).collect();
        join_all(streams.iter_mut().map(|stream| stream.next())).await;
        let (before, begun) = (model.stats(), Instant::now());
        join_all(streams.iter_mut().map(read)).await;
        let (after, took) = (model.stats(), begun.elapsed());
        speeds.push((after.sampled_tokens - before.sampled_tokens) as f64 / took.as_secs_f64());
        losses.push(100.0 * (1.0 - busy(&before, &after).as_secs_f64() / took.as_secs_f64()));
    }
    report.add(&format!("decode, {count} together"), speeds, "tokens/s");
    report.add(&format!("decode, {count} together: lost outside the forward passes"), losses, "%");
}

fn busy(before: &ModelStats, after: &ModelStats) -> Duration {
    after.pass_duration - before.pass_duration
}

/// Simultaneous chats, from the call to the last token.
async fn chats(model: &dyn TextModel, count: usize, report: &mut Report) {
    let (mut speeds, mut firsts) = (Vec::new(), Vec::new());
    for run in 0..RUNS.min(3) {
        let begun = Instant::now();
        let chat = async |i: usize| {
            let question = format!("Tell me a story about the number {}.", run * 100 + i);
            let messages = [Message::system("You are a helpful assistant."), Message::user(question)];
            let mut stream = model.chat(&messages, endless(ANSWER));
            (read(&mut stream).await, stream.metrics().time_to_first_token)
        };
        let answers = join_all((0..count).map(chat)).await;
        let tokens: usize = answers.iter().map(|(tokens, _)| tokens).sum();
        speeds.push(tokens as f64 / begun.elapsed().as_secs_f64());
        let mut times: Vec<f64> = answers.iter().map(|(_, first)| first.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        firsts.push(times[count / 2]);
    }
    report.add(&format!("chats, {count} at once"), speeds, "tokens/s");
    report.add(&format!("chats, {count} at once: median time to the first token"), firsts, "ms");
}

/// Simultaneous prompts that do not fit into one pass, from the call to the last token.
async fn burst(model: &dyn TextModel, report: &mut Report) {
    let (mut speeds, mut medians, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..3 {
        let begun = Instant::now();
        let mut streams: Vec<_> =
            (0..16).map(|i| model.generate(&prompt(128, 16 * run + i), endless(ANSWER))).collect();
        let tokens: usize = join_all(streams.iter_mut().map(read)).await.into_iter().sum();
        speeds.push(tokens as f64 / begun.elapsed().as_secs_f64());
        let firsts = streams.iter().map(|stream| stream.metrics().time_to_first_token.as_secs_f64() * 1e3);
        let mut firsts: Vec<f64> = firsts.collect();
        firsts.sort_by(f64::total_cmp);
        medians.push(median(&firsts));
        lasts.push(firsts[firsts.len() - 1]);
    }
    let name = "16 prompts of 128 tokens at once";
    report.add(name, speeds, "tokens/s");
    report.add(&format!("{name}: median time to the first token"), medians, "ms");
    report.add(&format!("{name}: longest time to the first token"), lasts, "ms");
}

/// An answer that copies its prompt, without and with prompt lookup.
async fn copy(model: &dyn TextModel, report: &mut Report) {
    let check =
        |field: &str| format!("    if config.{field} == 0 {{\n        return Err(Error::zero(\"{field}\"));\n    }}\n");
    let checks: String = ["layers", "heads", "width"].map(check).concat();
    let code = format!("fn check(config: &Config) -> Result<()> {{\n{checks}    Ok(())\n}}\n");
    let messages = [Message::user(format!("Repeat this code exactly, and write nothing else:\n```rust\n{code}```"))];
    for lookup in [0, 8] {
        let (mut speeds, mut right) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let mut stream = model.chat(&messages, GenerateConfig::new().max_tokens(100).prompt_lookup(lookup));
            read(&mut stream).await;
            let metrics = stream.metrics();
            speeds.push(metrics.decode_tokens_per_sec);
            right.push(100.0 * metrics.accepted_tokens as f64 / metrics.drafted_tokens.max(1) as f64);
        }
        report.add(&format!("code copied, {lookup} tokens guessed at a time"), speeds, "tokens/s");
        report.add(&format!("code copied, {lookup} tokens guessed at a time: right"), right, "%");
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The inter-token latencies of a stream in milliseconds, sorted.
async fn gaps(stream: &mut TokenStream, done: impl Fn() -> bool) -> Vec<f64> {
    let mut gaps = Vec::new();
    let mut last = Instant::now();
    while !done() && stream.next().await.is_some() {
        gaps.push(last.elapsed().as_secs_f64() * 1e3);
        last = Instant::now();
    }
    gaps.sort_by(f64::total_cmp);
    gaps
}

/// The latency of running streams when a prompt of 4,000 tokens arrives.
async fn long_prompt_among_streams(model: &dyn TextModel, report: &mut Report) {
    for streams in [1, 8] {
        let mut running: Vec<_> = (0..streams).map(|i| model.generate(&prompt(8, i), endless(4000))).collect();
        let mut watched = running.remove(0);
        let others = running.into_iter().map(|mut stream| async move { read(&mut stream).await });
        let (alone, usual_known, done) = (Duration::from_secs(2), Notify::new(), Cell::new(false));
        let usual = async |watched: &mut TokenStream| {
            let begun = Instant::now();
            median(&gaps(watched, || begun.elapsed() >= alone).await)
        };
        let watch = async {
            watched.next().await;
            let before = usual(&mut watched).await;
            usual_known.notify_one();
            let gaps = gaps(&mut watched, || done.get()).await;
            // Steps get slower as the streams grow.
            ((before + usual(&mut watched).await) / 2.0, gaps)
        };
        let arrive = async {
            usual_known.notified().await;
            let mut long = model.generate(&prompt(4000, 7), endless(1));
            read(&mut long).await;
            done.set(true);
            long.metrics()
        };
        let ((step, gaps), long) = tokio::select! {
            both = async { tokio::join!(watch, arrive) } => both,
            _ = async { join_all(others).await; std::future::pending::<()>().await } => unreachable!("it never ends"),
        };
        let name = format!("{streams} streams, a prompt of {} tokens comes", long.prompt_tokens);
        report.add(&format!("{name}: usual step"), vec![step], "ms");
        report.add(&format!("{name}: median step"), vec![median(&gaps) / step], "steps");
        report.add(&format!("{name}: 99 in 100 steps"), vec![gaps[gaps.len() * 99 / 100] / step], "steps");
        report.add(&format!("{name}: longest"), vec![gaps[gaps.len() - 1] / step], "steps");
        report.add(&format!("{name}: its prefill"), vec![long.prefill_tokens_per_sec], "tokens/s");
    }
}

/// The time to the first token of a short question beside 15 streams.
async fn newcomer_among_streams(model: &dyn TextModel, report: &mut Report) {
    let mut running: Vec<_> = (0..15).map(|i| model.generate(&prompt(8, i), endless(4000))).collect();
    let mut firsts = Vec::new();
    let ask = async {
        for run in 0..RUNS {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut stream = model.generate(&prompt(40, 100 + run), endless(1));
            read(&mut stream).await;
            firsts.push(stream.metrics().time_to_first_token.as_secs_f64() * 1e3);
        }
    };
    tokio::select! {
        () = ask => {}
        _ = join_all(running.iter_mut().map(read)) => {}
    }
    report.add("15 streams, a question of 40 tokens: first token", firsts, "ms");
}

/// The time from dropping 64 streams to their memory being free, and to the first token of a new request.
async fn cancel(model: &dyn TextModel, report: &mut Report) {
    let (mut freed, mut firsts, mut passes) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..3 {
        let mut streams: Vec<_> = (0..64).map(|i| model.generate(&prompt(8, i), endless(4000))).collect();
        join_all(streams.iter_mut().map(|stream| stream.next())).await;
        let (before, begun) = (model.stats(), Instant::now());
        drop(streams);
        let mut fresh = model.generate(&prompt(8, 1000 + run), endless(1));
        let mut free = None;
        let watch = async {
            while model.stats().running > 1 {
                tokio::task::yield_now().await;
            }
            free = Some(begun.elapsed());
        };
        tokio::join!(watch, read(&mut fresh));
        firsts.push(begun.elapsed().as_secs_f64() * 1e3);
        freed.push(free.unwrap_or_default().as_secs_f64() * 1e3);
        passes.push((model.stats().passes - before.passes) as f64);
    }
    report.add("64 streams dropped: all memory free", freed, "ms");
    report.add("64 streams dropped: a fresh request's first token", firsts, "ms");
    report.add("64 streams dropped: a fresh request's first token", passes, "passes");
}

/// CPU time of an idle model.
async fn idle(report: &mut Report) {
    let before = process::cpu_time();
    tokio::time::sleep(Duration::from_secs(2)).await;
    report.add("idle processor", vec![(process::cpu_time() - before).as_secs_f64() / 2.0 * 100.0], "%");
}

/// 100 prompts with a common prefix of about 300 tokens.
async fn shared_head(model: &dyn TextModel, report: &mut Report) -> process::Result<()> {
    let head = prompt(300, 0);
    let prompts: Vec<String> = (0..100).map(|i| format!("{head} {i}")).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let begun = Instant::now();
    model.classify(&prompts, GenerateConfig::new()).await?;
    let metrics = model.metrics();
    report.add("100 prompts with one head of 300 tokens", vec![begun.elapsed().as_secs_f64() * 1e3], "ms");
    let cached = metrics.cached_prompt_tokens as f64 / metrics.prompt_tokens as f64;
    report.add("100 prompts with one head of 300 tokens: cached", vec![100.0 * cached], "%");
    Ok(())
}
