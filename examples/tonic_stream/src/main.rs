//! The server: `cargo run --release --example tonic_stream -- --help`

use std::sync::Arc;

use tokenflow::{LoadConfig, load_model};
use tokenflow_examples::{Args, Result, Usage};
use tonic::transport::Server;
use tonic_stream::ChatService;

const USAGE: Usage = Usage {
    about: "A gRPC service that streams answers.\n\n\
            cargo run --release --example tonic_client -- \"What is the capital of France?\" asks it.",
    command: "cargo run --release --example tonic_stream --",
    words: "",
    model: true,
    options: &[("--address ADDR", "the address to listen on [127.0.0.1:50051]")],
};

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse(&USAGE);
    let address = args.option("--address").unwrap_or("127.0.0.1:50051").parse()?;
    let model = Arc::from(load_model(args.model().await?, LoadConfig::new()).await?);
    println!("listening on http://{address}");
    let served = Server::builder().add_service(ChatService::server(model)).serve(address).await;
    served.map_err(|error| format!("{address}: {error:?}").into())
}
