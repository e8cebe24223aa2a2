//! A gRPC service that streams a model's answers, to start from.
//!
//! A client that disconnects, or whose deadline passes, drops the stream, which frees its slot in the model before the
//! next forward pass.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, stream};
use tokenflow::{Error, GenerateConfig, Message, TextModel, Token};
use tonic::{Request, Response, Status, metadata::MetadataMap};

/// Generated from the .proto file.
#[allow(missing_docs, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod proto {
    tonic::include_proto!("chat");
}

use proto::{AnswerRequest, Piece, chat_server};

/// The service around a model.
pub struct ChatService {
    model: Arc<dyn TextModel>,
}

impl ChatService {
    /// The service, for `Server::add_service`.
    pub fn server(model: Arc<dyn TextModel>) -> chat_server::ChatServer<Self> {
        chat_server::ChatServer::new(Self { model })
    }
}

#[tonic::async_trait]
impl chat_server::Chat for ChatService {
    type AnswerStream = Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

    async fn answer(&self, request: Request<AnswerRequest>) -> Result<Response<Self::AnswerStream>, Status> {
        let deadline = deadline(request.metadata());
        let AnswerRequest { messages, max_tokens, temperature } = request.into_inner();
        let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let mut config = GenerateConfig::new().temperature(temperature);
        config.deadline = deadline.map(Into::into);
        if max_tokens > 0 {
            config.max_tokens = max_tokens as usize;
        }
        let mut tokens = self.model.chat(&messages, config).into_results();
        // An error before the first token fails the call.
        let first = tokens.next().await.transpose().map_err(status)?;
        let piece = |token: Token| Piece { text: token.text };
        let pieces = stream::iter(first.map(Ok)).chain(tokens).map(move |token| token.map(piece).map_err(status));
        Ok(Response::new(Box::pin(pieces)))
    }
}

fn message(message: proto::Message) -> Result<Message, Status> {
    match message.role.as_str() {
        "system" => Ok(Message::system(message.content)),
        "user" => Ok(Message::user(message.content)),
        "assistant" => Ok(Message::assistant(message.content)),
        role => Err(Status::invalid_argument(format!("role {role:?} is none of system, user, assistant"))),
    }
}

/// The client's deadline, from the header `grpc-timeout`: up to eight digits and a unit.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = timeout.split_at_checked(timeout.len().checked_sub(1)?)?;
    let nanos_per_unit: u64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return None,
    };
    let nanos = number.parse::<u64>().ok()?.checked_mul(nanos_per_unit)?;
    Instant::now().checked_add(Duration::from_nanos(nanos))
}

fn status(error: Error) -> Status {
    let message = error.to_string();
    match error {
        Error::Overloaded { .. } => Status::resource_exhausted(message),
        Error::DeadlineExceeded => Status::deadline_exceeded(message),
        Error::Cancelled => Status::cancelled(message),
        Error::PromptTooLong { .. } | Error::InvalidConfig { .. } | Error::ChatTemplate { .. } => {
            Status::invalid_argument(message)
        }
        Error::Closed => Status::unavailable(message),
        _ => Status::internal(message),
    }
}
