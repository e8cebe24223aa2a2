//! The service: `cargo run --release --example axum_sse -- --help`

use std::sync::Arc;

use tokenflow::{LoadConfig, TextModel, load_model};
use tokenflow_examples::{Args, Result, Usage};
use tokio::net::TcpListener;

const USAGE: Usage = Usage {
    about: "An HTTP service that answers with server-sent events.\n\n\
            curl -N localhost:8080/chat --json \\\n  \
            '{\"messages\": [{\"role\": \"system\", \"content\": \"You are a helpful assistant.\"},\n  \
            {\"role\": \"user\", \"content\": \"What is the capital of France?\"}]}'",
    command: "cargo run --release --example axum_sse --",
    words: "",
    model: true,
    options: &[("--address ADDR", "the address to listen on [127.0.0.1:8080]")],
};

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let model: Arc<dyn TextModel> = Arc::from(load_model(args.model().await?, LoadConfig::new()).await?);
    let address = args.option("--address").unwrap_or("127.0.0.1:8080");
    let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, axum_sse::router(model)).await?)
}
