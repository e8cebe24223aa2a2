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
use futures::{Stream, StreamExt, future, stream};
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
    let tokens = stream::iter(first.map(Ok)).chain(tokens).map(Some);
    // An error is the last item there is.
    let ended = tokens.chain(stream::iter([None])).scan(false, |failed, token| {
        let event = (!*failed).then(|| event(token.as_ref()));
        *failed = matches!(token, Some(Err(_)));
        future::ready(event)
    });
    Ok(Sse::new(ended).keep_alive(KeepAlive::default()))
}

/// A token, an error, or the end.
fn event(token: Option<&Result<Token, Error>>) -> Result<Event, axum::Error> {
    match token {
        Some(Ok(token)) => Event::default().json_data(json!({ "text": token.text })),
        Some(Err(error)) => Event::default().event("error").json_data(json!({ "message": error.to_string() })),
        // Browsers do not tell of events without data.
        None => Event::default().event("done").json_data(json!({})),
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
