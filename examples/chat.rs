//! A chat in the terminal: `cargo run --release --example chat -- [--model PATH] [QUESTION]`
//!
//! With a question it answers and ends. Without one it keeps a conversation: Ctrl-C stops an answer,
//! a second one (or Ctrl-D) quits.

#[path = "support/mod.rs"]
mod support;

use std::{io::Write, pin::pin};

use futures::StreamExt;
use tokenflow::{FinishReason, GenerateConfig, LoadConfig, Message, TextModel, load_model};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::ctrl_c,
};

#[tokio::main]
async fn main() -> support::Result<()> {
    let args = support::Args::parse()?;
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    match args.text() {
        Some(question) => answer(&*model, &[instructions(), Message::user(question)]).await.map(drop)?,
        None => converse(&*model).await?,
    }
    model.close().await?;
    Ok(())
}

fn instructions() -> Message {
    Message::system("You are a helpful assistant.")
}

/// Reads questions until the input ends or Ctrl-C comes while none is being answered.
async fn converse(model: &dyn TextModel) -> support::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut conversation = vec![instructions()];
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = ctrl_c() => None,
        };
        let Some(line) = line else { break };
        if line.trim().is_empty() {
            continue;
        }
        conversation.push(Message::user(line));
        match answer(model, &conversation).await {
            Ok(text) => conversation.push(Message::assistant(text)),
            Err(error) => {
                eprintln!("{error}");
                conversation.pop();
            }
        }
    }
    println!();
    // A read of the terminal cannot be taken back; leave without waiting for it.
    model.close().await?;
    std::process::exit(0)
}

/// Streams an answer to the terminal, then says how fast it was. Ctrl-C cuts it short.
async fn answer(model: &dyn TextModel, conversation: &[Message]) -> support::Result<String> {
    // Small models go round in circles without a penalty, and avoid the words of the conversation without a window.
    let config = GenerateConfig::new().max_tokens(1024).repeat_penalty(1.1).penalty_window(64);
    let mut stream = model.chat(conversation, config);
    let stop = stream.cancellation_token();
    // One future for the whole answer: a new one would miss what comes before it is polled.
    let mut interrupt = pin!(ctrl_c());
    let mut text = String::new();
    loop {
        let token = tokio::select! {
            token = stream.next() => token,
            _ = &mut interrupt, if !stop.is_cancelled() => {
                stop.cancel();
                continue;
            }
        };
        let Some(token) = token else { break };
        print!("{}", token.text);
        std::io::stdout().flush()?;
        text += &token.text;
    }
    println!();
    let metrics = stream.metrics();
    eprintln!(
        "[{} tokens, {:.1} tokens/s, first token after {:.0?}]",
        metrics.generated_tokens, metrics.decode_tokens_per_sec, metrics.time_to_first_token
    );
    match stream.err() {
        Some(error) if stream.finish_reason() != Some(FinishReason::Cancelled) => Err(error.clone().into()),
        _ => Ok(text),
    }
}
