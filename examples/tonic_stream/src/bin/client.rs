//! A client: `cargo run --release -p tonic_stream --bin client -- "What is the capital of France?"`

use std::io::Write;

use tonic_stream::proto::{AnswerRequest, Message, chat_client::ChatClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let question = std::env::args().nth(1).ok_or("usage: client QUESTION")?;
    let mut client = ChatClient::connect("http://127.0.0.1:50051").await?;
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let messages = vec![message("system", "You are a helpful assistant."), message("user", &question)];
    let mut pieces = client.answer(AnswerRequest { messages, ..AnswerRequest::default() }).await?.into_inner();
    while let Some(piece) = pieces.message().await? {
        print!("{}", piece.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
