//! The service with a real client over loopback, and a scripted model behind it.

use std::{
    io::{BufRead, BufReader, Read},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokenflow::{LoadConfig, TextModel, testing::ScriptedModel};
use tokio::{net::TcpListener, task::spawn_blocking};

#[path = "../../../tests/support/scripted.rs"]
mod scripted;

use scripted::{held_model, talkative, until};

async fn serve(model: ScriptedModel) -> (Arc<dyn TextModel>, String) {
    let model: Arc<dyn TextModel> = Arc::from(model.build().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/chat", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, axum_sse::router(model.clone())).into_future());
    (model, url)
}

/// Posts a question, and returns status and body.
fn post(url: &str, content: &str) -> (u16, impl Read + use<>) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let body = json!({ "messages": [{ "role": "user", "content": content }] });
    let request = ureq::Agent::new_with_config(config).post(url).header("content-type", "application/json");
    let response = request.send(body.to_string()).unwrap();
    (response.status().as_u16(), response.into_body().into_reader())
}

/// The lines of an answer.
async fn lines(url: String, content: &'static str) -> Vec<String> {
    let lines = spawn_blocking(move || {
        let (status, body) = post(&url, content);
        assert_eq!(status, 200);
        BufReader::new(body).lines().collect::<Result<Vec<_>, _>>().unwrap()
    });
    lines.await.unwrap()
}

#[tokio::test]
async fn answer_streams_as_events() {
    let (_model, url) =
        serve(ScriptedModel::new(|prompt| format!("{prompt:?}, you said: line 1\nline 2 — 你好"))).await;
    let lines = lines(url, "Hello").await;
    let data = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let text: String = data.filter_map(|data| Some(data["text"].as_str()?.to_owned())).collect();
    assert_eq!(text, "\"user: Hello\\n\", you said: line 1\nline 2 — 你好");
    assert!(lines.iter().any(|line| line == "event: done"));
}

#[tokio::test]
async fn empty_answer_sends_only_done() {
    let (_model, url) = serve(ScriptedModel::new(|_| String::new())).await;
    assert_eq!(lines(url, "Hello").await, ["event: done", "data: {}", ""]);
}

#[tokio::test]
async fn failed_answer_ends_with_an_error_event() {
    let (model, hold) = held_model();
    let (model, url) = serve(model).await;
    let answer = tokio::spawn(lines(url, "Go on"));
    hold.reached().await;
    let close = tokio::spawn(async move { model.close().await });
    drop(hold);
    close.await.unwrap().unwrap();
    let events: Vec<_> = answer.await.unwrap().into_iter().filter(|line| line.starts_with("event: ")).collect();
    assert_eq!(events, ["event: error"]);
}

#[tokio::test]
async fn disconnect_frees_the_sequence_within_one_step() {
    let (model, hold) = held_model();
    let (model, url) = serve(model).await;
    let body = spawn_blocking(move || {
        let (_, mut body) = post(&url, "Go on");
        body.read_exact(&mut [0; 100]).unwrap();
        body
    });
    let body = body.await.unwrap();
    // The client goes while a step is being taken: it is the last one.
    hold.reached().await;
    let before = model.stats();
    assert_eq!(before.running, 1);
    drop(body);
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(hold);
    let stats = until(&*model, |stats| stats.running == 0).await;
    assert_eq!(stats.passes, before.passes + 1);
    assert_eq!((stats.waiting, stats.kv_used_bytes, stats.cancelled), (0, 0, 1));
}

#[tokio::test]
async fn errors_map_to_statuses() {
    let (model, url) = serve(talkative().load_config(LoadConfig::new().context_len(256))).await;
    let question = "x".repeat(1000);
    let target = url.clone();
    let (status, message) = spawn_blocking(move || {
        let (status, mut body) = post(&target, &question);
        let mut message = String::new();
        body.read_to_string(&mut message).unwrap();
        (status, message)
    })
    .await
    .unwrap();
    assert_eq!((status, message.contains("256")), (400, true), "{message}");
    model.close().await.unwrap();
    assert_eq!(spawn_blocking(move || post(&url, "Hello").0).await.unwrap(), 503);
}
