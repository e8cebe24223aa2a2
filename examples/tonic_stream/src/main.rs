//! The server: `cargo run --release -p tonic_stream -- [--model PATH]`

use std::sync::Arc;

use tokenflow::{LoadConfig, load_model};
use tonic::transport::Server;
use tonic_stream::ChatService;

#[path = "../../support/mod.rs"]
mod support;

#[tokio::main]
async fn main() -> support::Result<()> {
    let path = support::Args::parse()?.model().await?;
    let model = Arc::from(load_model(path, LoadConfig::new()).await?);
    let address = "127.0.0.1:50051".parse()?;
    println!("listening on http://{address}");
    Server::builder().add_service(ChatService::server(model)).serve(address).await?;
    Ok(())
}
