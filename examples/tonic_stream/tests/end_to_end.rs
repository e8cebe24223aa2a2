//! The service with a real client over loopback, and a scripted model behind it.

use std::{sync::Arc, time::Duration};

use tokenflow::{LoadConfig, TextModel, testing::ScriptedModel};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request,
    transport::{Channel, Server},
};
use tonic_stream::{
    ChatService,
    proto::{AnswerRequest, Message, chat_client::ChatClient},
};

#[path = "../../../tests/support/scripted.rs"]
mod scripted;

use scripted::{held_model, talkative, until};

type Client = ChatClient<Channel>;

async fn serve(model: ScriptedModel) -> (Arc<dyn TextModel>, Client) {
    let model: Arc<dyn TextModel> = Arc::from(model.build().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = ChatService::server(model.clone());
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    (model, ChatClient::connect(format!("http://{address}")).await.unwrap())
}

fn ask(content: &str) -> AnswerRequest {
    let message = Message { role: "user".into(), content: content.into() };
    AnswerRequest { messages: vec![message], max_tokens: 100_000, temperature: 0.0 }
}

#[tokio::test]
async fn answer_streams() {
    let (_model, mut client) = serve(ScriptedModel::new(|prompt| format!("Is {prompt:?} a question?"))).await;
    let mut pieces = client.answer(ask("Hello — 你好")).await.unwrap().into_inner();
    let (mut text, mut count) = (String::new(), 0);
    while let Some(piece) = pieces.message().await.unwrap() {
        text += &piece.text;
        count += 1;
    }
    assert_eq!(text, "Is \"user: Hello — 你好\\n\" a question?");
    assert!(count > 10);
}

#[tokio::test]
async fn disconnect_frees_the_sequence_within_one_step() {
    let (model, hold) = held_model();
    let (model, mut client) = serve(model).await;
    let mut pieces = client.answer(ask("Go on")).await.unwrap().into_inner();
    pieces.message().await.unwrap().unwrap();
    // The client goes while a step is being taken: it is the last one.
    hold.reached().await;
    let before = model.stats();
    assert_eq!(before.running, 1);
    drop(pieces);
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(hold);
    let stats = until(&*model, |stats| stats.running == 0).await;
    assert_eq!(stats.passes, before.passes + 1);
    assert_eq!((stats.waiting, stats.kv_used_bytes, stats.cancelled), (0, 0, 1));
}

#[tokio::test]
async fn disconnect_before_the_first_token_frees_the_slot() {
    let (model, mut client) = serve(talkative()).await;
    let answer = tokio::spawn(async move { client.answer(ask(&"long ".repeat(10_000))).await });
    until(&*model, |stats| stats.running + stats.waiting == 1).await;
    answer.abort();
    until(&*model, |stats| stats.running + stats.waiting == 0).await;
}

#[tokio::test]
async fn errors_map_to_statuses() {
    let (model, mut client) = serve(talkative().load_config(LoadConfig::new().context_len(256))).await;
    let code = async |client: &mut Client, request: Request<AnswerRequest>| {
        client.answer(request).await.err().map(|status| status.code())
    };
    let long = Request::new(ask(&"x".repeat(1000)));
    assert_eq!(code(&mut client, long).await, Some(Code::InvalidArgument));
    let mut role = ask("Hello");
    role.messages[0].role = "root".into();
    assert_eq!(code(&mut client, Request::new(role)).await, Some(Code::InvalidArgument));
    model.close().await.unwrap();
    assert_eq!(code(&mut client, Request::new(ask("Hello"))).await, Some(Code::Unavailable));
}

#[tokio::test]
async fn client_deadline_ends_the_answer() {
    let (model, mut client) = serve(talkative()).await;
    let mut request = Request::new(ask("Go on"));
    request.set_timeout(Duration::from_millis(200));
    let outcome = async {
        let mut pieces = client.answer(request).await?.into_inner();
        while pieces.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    let status = outcome.await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    until(&*model, |stats| stats.running == 0).await;
}
