//! A POST that answers with server-sent events, for services to start from.
//!
//! ```sh
//! cargo run --release --example axum_sse
//! curl -N localhost:8080/chat --json '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
//! ```
//!
//! Each token comes as `data: {"text": …}`; the last event is `done` or `error`. A client that goes away
//! drops the stream, which frees its place in the model before the next step.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
    routing::post,
};
use futures::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokenflow::{Error, GenerateConfig, LoadConfig, Message, TextModel, Token, load_model};

#[path = "support/mod.rs"]
mod support;

type Model = Arc<dyn TextModel>;

#[tokio::main]
async fn main() -> support::Result<()> {
    let path = support::Args::parse()?.model().await?;
    let model: Model = Arc::from(load_model(path, LoadConfig::new()).await?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, router(model)).await?)
}

/// The service around a model.
pub fn router(model: Model) -> Router {
    Router::new().route("/chat", post(chat)).with_state(model)
}

#[derive(Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
    #[serde(default)]
    temperature: f32,
}

async fn chat(
    State(model): State<Model>,
    Json(request): Json<ChatRequest>,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, (StatusCode, String)> {
    let config = GenerateConfig::new().temperature(request.temperature).deadline(Duration::from_secs(120));
    let mut tokens = model.chat(&request.messages, config).into_results();
    // What fails before the first token is an HTTP error.
    let first = tokens.next().await.transpose().map_err(|error| (status(&error), error.to_string()))?;
    let tokens = stream::iter(first.map(Ok)).chain(tokens).map(event);
    let done = stream::iter([Ok(Event::default().event("done").data(""))]);
    Ok(Sse::new(tokens.chain(done)).keep_alive(KeepAlive::default()))
}

fn event(token: Result<Token, Error>) -> Result<Event, axum::Error> {
    match token {
        Ok(token) => Event::default().json_data(json!({ "text": token.text })),
        Err(error) => Event::default().event("error").json_data(json!({ "message": error.to_string() })),
    }
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Error::PromptTooLong { .. } | Error::InvalidConfig { .. } | Error::ChatTemplate { .. } => {
            StatusCode::BAD_REQUEST
        }
        Error::Closed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
