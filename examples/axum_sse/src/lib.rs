//! An HTTP service that answers a POST with server-sent events, to start from.
//!
//! Each token comes as `data: {"text": …}`; the last event is `done` or `error`. A client that disconnects drops the
//! stream, which frees its place in the model before the next forward pass.

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
use tokenflow::{Error, GenerateConfig, Message, TextModel, Token};

type Model = Arc<dyn TextModel>;

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
    // An error before the first token becomes an HTTP status.
    let first = tokens.next().await.transpose().map_err(|error| (status(&error), error.to_string()))?;
    let tokens = stream::iter(first.map(Ok)).chain(tokens).map(Some);
    // Nothing follows an error.
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
        // Browsers drop events without data.
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
