//! A client: `cargo run --release --example tonic_client -- --help`

use std::io::Write;

use tokenflow_examples::{Args, Result, SYSTEM_MESSAGE, Usage};
use tonic_stream::proto::{AnswerRequest, Message, chat_client::ChatClient};

const USAGE: Usage = Usage {
    about: "Asks the gRPC service a QUESTION.",
    command: "cargo run --release --example tonic_client --",
    words: "[QUESTION]",
    model: false,
    options: &[("--server URL", "the server [http://127.0.0.1:50051]")],
};

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let server = args.option("--server").unwrap_or("http://127.0.0.1:50051");
    let question = args.text().unwrap_or("What is the capital of France?");
    let mut client = ChatClient::connect(server.to_owned()).await.map_err(|error| {
        format!("{server} cannot be reached ({error}); start it with `cargo run --release --example tonic_stream`")
    })?;
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let messages = vec![message("system", SYSTEM_MESSAGE), message("user", question)];
    let request = AnswerRequest { messages, ..AnswerRequest::default() };
    let failed = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
    let mut pieces = client.answer(request).await.map_err(failed)?.into_inner();
    while let Some(piece) = pieces.message().await.map_err(failed)? {
        print!("{}", piece.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
