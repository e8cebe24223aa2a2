//! A model under random requests that are cancelled, dropped, read slowly or given deadlines:
//! `cargo bench --bench soak -- [--seconds N] [MODEL]`
//!
//! Fails if a stream ends without a reason, if anything is held at the end, or if memory grows.

#[path = "process/mod.rs"]
mod process;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use tokenflow::{Error, FinishReason, GenerateConfig, LoadConfig, Message, TextModel, load_model};

const CLIENTS: usize = 48;

#[tokio::main]
async fn main() -> process::Result<()> {
    let (mut seconds, mut path) = (600, None);
    let mut args = process::arguments();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => seconds = args.next().ok_or("--seconds takes a number")?.parse()?,
            _ => path = Some(PathBuf::from(arg)),
        }
    }
    let path = match path {
        Some(path) => path,
        None => tokenflow_examples::smollm2_gguf().await?,
    };
    // A cache that fills, so that there are preemptions and evictions.
    let config = LoadConfig::new().context_len(1024).kv_cache_bytes(32 << 20).queue_limit(CLIENTS / 2);
    let model: Arc<dyn TextModel> = Arc::from(load_model(path, config).await?);
    let ends: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let end = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(run_client(client as u64, model.clone(), ends.clone(), end))).collect();
    let mut resident = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep((end - Instant::now()).min(Duration::from_secs(10))).await;
        let stats = model.stats();
        resident.push(process::resident_bytes() as f64 / 1e6);
        println!(
            "{:5.0} s left, {:6.1} MB resident, {} running, {} waiting, {:.1} MB of KV blocks, {:.1} MB cached, \
             {} preemptions, {:.1} tokens a pass",
            end.saturating_duration_since(Instant::now()).as_secs_f64(),
            resident[resident.len() - 1],
            stats.running,
            stats.waiting,
            stats.kv_used_bytes as f64 / 1e6,
            stats.kv_cached_bytes as f64 / 1e6,
            stats.preemptions,
            stats.tokens_per_pass(),
        );
    }
    for client in clients {
        client.await?;
    }
    for (reason, count) in &*ends.lock().map_err(|_| "a client panicked")? {
        println!("{count:8} {reason}");
    }
    let stats = model.stats();
    println!("{stats:#?}");
    if (stats.running, stats.waiting, stats.kv_used_bytes) != (0, 0, 0) {
        return Err("something is still held".into());
    }
    // After the first third everything has been touched.
    let settled = &resident[resident.len() / 3..];
    let (least, most) = settled.iter().fold((f64::MAX, 0f64), |(least, most), mb| (least.min(*mb), most.max(*mb)));
    println!("resident after the first third: {least:.1} to {most:.1} MB");
    if most > 1.1 * least {
        return Err("memory grows".into());
    }
    model.close().await?;
    Ok(())
}

/// [xorshift64*](https://doi.org/10.1145/2845077)
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

async fn run_client(client: u64, model: Arc<dyn TextModel>, ends: Arc<Mutex<BTreeMap<String, usize>>>, end: Instant) {
    let mut random = Random(client * 7919 + 1);
    while Instant::now() < end {
        let how = ask(&*model, &mut random).await;
        if how == "overloaded" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Ok(mut ends) = ends.lock() {
            *ends.entry(how).or_default() += 1;
        }
    }
}

/// One request, and how it ended.
async fn ask(model: &dyn TextModel, random: &mut Random) -> String {
    // Heads of several blocks, for the prefix cache.
    let head =
        ["You are a helpful assistant. ", "You are a pirate. ", "Answer in one word. "][random.below(3)].repeat(10);
    let words = ["one", "two", "three", "four", "five"];
    let text: Vec<&str> = (0..1 + random.below(60)).map(|_| words[random.below(5)]).collect();
    let messages = [Message::system(head), Message::user(text.join(" "))];
    let mut config = GenerateConfig::new()
        .max_tokens(1 + random.below(400))
        .temperature([0.0, 0.8, 1.2][random.below(3)])
        .top_p([0.0, 0.9][random.below(2)])
        .top_k([0, 40][random.below(2)])
        .priority(random.below(3) as i32);
    if random.below(8) == 0 {
        config = config.deadline(Duration::from_millis(random.below(20_000) as u64));
    }
    let mut stream = model.chat(&messages, config);
    let fate = random.below(10);
    let patience = random.below(200);
    let mut read = 0;
    while stream.next().await.is_some() {
        read += 1;
        match fate {
            // It goes away, cancels, or falls asleep for a while.
            0 | 1 if read > patience => return "dropped".into(),
            2 if read > patience => stream.cancellation_token().cancel(),
            3 if read == 3 => tokio::time::sleep(Duration::from_millis(random.below(4000) as u64)).await,
            _ => {}
        }
    }
    match (stream.finish_reason(), stream.err()) {
        (Some(FinishReason::Stop), None) => "stop".into(),
        (Some(FinishReason::Length), None) => "length".into(),
        (Some(FinishReason::Cancelled), Some(Error::Cancelled)) => "cancelled".into(),
        (Some(FinishReason::Error), Some(Error::Overloaded { .. })) => "overloaded".into(),
        (Some(FinishReason::Error), Some(Error::DeadlineExceeded)) => "deadline".into(),
        end => panic!("a stream ended with {end:?}"),
    }
}
