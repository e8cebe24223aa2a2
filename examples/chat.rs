//! A chat in the terminal: `cargo run --release --example chat -- --help`

use std::{
    io::{IsTerminal, Write},
    pin::pin,
};

use futures::StreamExt;
use tokenflow::{FinishReason, GenerateConfig, LoadConfig, Message, TextModel, load_model};
use tokenflow_examples::{Args, Result, SYSTEM_MESSAGE, Usage, explain};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::ctrl_c,
};

const USAGE: Usage = Usage {
    about: "A chat in the terminal.\n\nWith a QUESTION it answers and ends; without one it keeps a conversation.",
    command: "cargo run --release --example chat --",
    words: "[QUESTION]",
    model: true,
    options: &[("--system TEXT", "the system message [\"You are a helpful assistant.\"]")],
};

const HINTS: &str = "Ctrl-C stops an answer. Ctrl-D or /quit ends the chat, /new begins another conversation.";

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let model = load_model(args.model().await?, LoadConfig::new()).await?;
    let system = Message::system(args.option("--system").unwrap_or(SYSTEM_MESSAGE));
    match args.text() {
        Some(question) => answer(&*model, &[system, Message::user(question)]).await.map(drop)?,
        None => converse(&*model, system).await?,
    }
    model.close().await?;
    Ok(())
}

/// Answers lines of the input until it ends, or until Ctrl-C comes while no answer is being written.
///
/// The terminal edits a line. A line editor with a history would be a third of this program's dependencies; `rlwrap`
/// adds one to any program.
async fn converse(model: &dyn TextModel, system: Message) -> Result<()> {
    if std::io::stdin().is_terminal() {
        println!("{HINTS}");
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut conversation = vec![system];
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = ctrl_c() => None,
        };
        let Some(line) = line else { break };
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/new" => conversation.truncate(1),
            command if command.starts_with('/') => println!("There is no command {command}. {HINTS}"),
            question => {
                conversation.push(Message::user(question));
                match answer(model, &conversation).await {
                    Ok(text) => conversation.push(Message::assistant(text)),
                    Err(error) => {
                        eprintln!("{error}");
                        conversation.pop();
                    }
                }
            }
        }
    }
    println!();
    // A read of the terminal cannot be cancelled, so the process ends without waiting for it.
    model.close().await?;
    std::process::exit(0)
}

/// Streams an answer to the terminal, then tells why it ended and how fast it was. Ctrl-C cancels it.
async fn answer(model: &dyn TextModel, conversation: &[Message]) -> Result<String> {
    // Without a penalty small models repeat themselves; without a window they avoid the words of the conversation.
    let config = GenerateConfig::new().max_tokens(1024).repeat_penalty(1.1).penalty_window(64);
    let mut stream = model.chat(conversation, config);
    let stop = stream.cancellation_token();
    // One future for the whole answer: a second one would miss a Ctrl-C that comes before it is polled.
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
    let (metrics, reason) = (stream.metrics(), stream.finish_reason());
    eprintln!(
        "[{}: {} tokens, {:.1} tokens/s, first token after {:.0?}]",
        explain(reason),
        metrics.generated_tokens,
        metrics.decode_tokens_per_sec,
        metrics.time_to_first_token
    );
    match stream.err() {
        Some(error) if reason != Some(FinishReason::Cancelled) => Err(error.clone().into()),
        _ => Ok(text),
    }
}
