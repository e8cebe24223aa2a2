use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::{Context, Poll, ready},
    thread,
};

use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{Error, GenerateMetrics, Result};

/// One generated token. For serde it has `logprobs` only if they are there.
///
/// ```
/// use tokenflow::Token;
/// let json = serde_json::to_string(&Token::new(7, "sea")).unwrap();
/// assert_eq!(json, r#"{"id":7,"text":"sea"}"#);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Token {
    /// The id in the model's vocabulary.
    pub id: u32,
    /// The text this token adds. Empty if the token ends inside a UTF-8 character, whose bytes
    /// then come with the next one, or if it is a special token. The texts of all tokens together are what
    /// their ids add to the decoding of the prompt, a space at the beginning included; but where generated
    /// bytes are no UTF-8, tokenizers with byte tokens replace the characters before them, too, which a stream
    /// has given by then and keeps.
    pub text: String,
    /// Log-probabilities, if [`GenerateConfig::logprobs`](crate::GenerateConfig::logprobs) asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<TokenLogprobs>,
}

impl Token {
    /// A token without log-probabilities.
    pub fn new(id: u32, text: impl Into<String>) -> Self {
        Self { id, text: text.into(), logprobs: None }
    }
}

/// How likely a token was: natural logarithms under the model's own distribution, before
/// temperature, penalties and truncation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// The log-probability of the token itself.
    pub logprob: f32,
    /// The most likely ids and their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// A record, for implementers of backends.
    pub fn new(logprob: f32, top: Vec<(u32, f32)>) -> Self {
        Self { logprob, top }
    }
}

/// Why a stream ended: for serde `"stop"`, `"length"`, `"cancelled"` or `"error"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its answer, or a stop token or stop string came.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// The request was cancelled.
    Cancelled,
    /// [`TokenStream::err`] says what went wrong.
    Error,
}

/// The tokens of one answer, as they are generated: a `Stream<Item = Token>`.
///
/// The stream is `Send + 'static` and owns its request. Dropping it cancels the request: its place
/// in the batch and its memory are free before the next forward pass. A reader that stops reading
/// pauses its own request only.
///
/// # Examples
/// ```
/// # use tokenflow::{TokenStream, GenerateConfig, Token, FinishReason, GenerateMetrics};
/// use futures::StreamExt;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// # let (sender, mut stream) = TokenStream::channel(4, &GenerateConfig::new());
/// # sender.try_send(vec![Token::new(0, "Par"), Token::new(1, "is")], GenerateMetrics::default()).ok();
/// # sender.finish(FinishReason::Stop, None, GenerateMetrics::default());
/// let mut text = String::new();
/// while let Some(token) = stream.next().await {
///     text += &token.text;
/// }
/// assert_eq!(text, "Paris");
/// assert_eq!(stream.finish_reason(), Some(FinishReason::Stop));
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a stream that is dropped cancels its request"]
pub struct TokenStream {
    events: mpsc::Receiver<Event>,
    ended: oneshot::Receiver<End>,
    buffered: VecDeque<Token>,
    end: Option<End>,
    metrics: GenerateMetrics,
    cancellation: CancellationToken,
    room: Arc<Room>,
}

/// What the sender tells after a step.
#[derive(Debug)]
struct Event {
    tokens: Vec<Token>,
    metrics: GenerateMetrics,
}

#[derive(Debug)]
struct End {
    reason: FinishReason,
    error: Option<Error>,
    metrics: GenerateMetrics,
}

/// Whether the sender waits for the reader, and how to tell it that there is room again.
#[derive(Debug, Default)]
struct Room {
    awaited: AtomicBool,
    made: Arc<Notify>,
}

impl TokenStream {
    /// A stream and its sending half, for implementers of backends. At most `buffer` unread events
    /// are held, one at least; `config` gives the token that cancels the stream.
    pub fn channel(buffer: usize, config: &crate::GenerateConfig) -> (TokenSender, Self) {
        Self::channel_with_wake(buffer, config, Arc::default())
    }

    /// As [`channel`](Self::channel); `wake` is notified when the reader has made room that the
    /// sender found missing.
    pub(crate) fn channel_with_wake(
        buffer: usize,
        config: &crate::GenerateConfig,
        wake: Arc<Notify>,
    ) -> (TokenSender, Self) {
        let cancellation = match &config.cancellation {
            Some(token) => token.child_token(),
            None => CancellationToken::new(),
        };
        let (event_sender, events) = mpsc::channel(buffer.clamp(1, Semaphore::MAX_PERMITS));
        let (end_sender, ended) = oneshot::channel();
        let room = Arc::new(Room { awaited: AtomicBool::new(false), made: wake });
        let sender = TokenSender {
            events: Some(event_sender),
            end: Some(end_sender),
            cancellation: cancellation.clone(),
            room: room.clone(),
        };
        let (buffered, end, metrics) = Default::default();
        (sender, Self { events, ended, buffered, end, metrics, cancellation, room })
    }

    /// A stream that has ended with `error`.
    pub fn failed(error: Error) -> Self {
        let (sender, stream) = Self::channel(1, &crate::GenerateConfig::new());
        sender.fail(error, GenerateMetrics::default());
        stream.ended()
    }

    /// Takes an end that has already been sent.
    fn ended(mut self) -> Self {
        self.end = self.ended.try_recv().ok();
        self
    }

    /// A token that cancels this stream only. A token in the request's config cancels it too.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.cancellation.clone()
    }

    /// Why the stream ended; `Some` once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.end.as_ref().map(|end| end.reason)
    }

    /// Why the stream ended early, if it did.
    pub fn err(&self) -> Option<&Error> {
        self.end.as_ref().and_then(|end| end.error.as_ref())
    }

    /// Figures of this stream, as of the last token that was read.
    pub fn metrics(&self) -> GenerateMetrics {
        self.end.as_ref().map_or(self.metrics, |end| end.metrics)
    }

    /// Reads the stream to its end and returns the whole text.
    ///
    /// # Errors
    /// Whatever ended the stream early; the text up to there is lost. Read the stream itself to
    /// keep it.
    ///
    /// # Cancel safety
    /// Dropping the future drops the stream, which cancels the request.
    pub async fn text(mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(token) = self.next().await {
            text += &token.text;
        }
        self.end.as_mut().and_then(|end| end.error.take()).map_or(Ok(text), Err)
    }

    /// The stream with its error as the last item, for use with `?`.
    pub fn into_results(self) -> impl Stream<Item = Result<Token>> + Send + Unpin {
        stream::unfold(Some(self), |state| {
            Box::pin(async move {
                let mut stream = state?;
                match stream.next().await {
                    Some(token) => Some((Ok(token), Some(stream))),
                    None => stream.err().cloned().map(|error| (Err(error), None)),
                }
            })
        })
        .fuse()
    }
}

impl Stream for TokenStream {
    type Item = Token;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Token>> {
        let this = self.get_mut();
        loop {
            if let Some(token) = this.buffered.pop_front() {
                return Poll::Ready(Some(token));
            }
            if this.end.is_some() {
                return Poll::Ready(None);
            }
            if let Some(event) = ready!(this.events.poll_recv(cx)) {
                fence(Ordering::SeqCst);
                if this.room.awaited.swap(false, Ordering::SeqCst) {
                    this.room.made.notify_one();
                }
                this.metrics = event.metrics;
                this.buffered.extend(event.tokens);
                continue;
            }
            let end = ready!(Pin::new(&mut this.ended).poll(cx)).unwrap_or_else(|_| End {
                reason: FinishReason::Error,
                error: Some(Error::Closed),
                metrics: this.metrics,
            });
            this.end = Some(end);
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.cancellation.cancel();
        }
    }
}

/// The sending half of a [`TokenStream`], for implementers of backends.
///
/// Dropping it without [`finish`](Self::finish) ends the stream with [`Error::Closed`].
#[derive(Debug)]
pub struct TokenSender {
    /// There until the sender is dropped.
    events: Option<mpsc::Sender<Event>>,
    end: Option<oneshot::Sender<End>>,
    cancellation: CancellationToken,
    room: Arc<Room>,
}

impl TokenSender {
    /// Whether the next [`try_send`](Self::try_send) will find room.
    pub fn has_room(&self) -> bool {
        let free = || self.events.as_ref().is_some_and(|events| events.capacity() > 0);
        if free() {
            return true;
        }
        self.room.awaited.store(true, Ordering::SeqCst);
        // The reader may have made room before it could see that we wait for it; one of both sees the other.
        fence(Ordering::SeqCst);
        free()
    }

    /// Hands the tokens of one step to the reader.
    ///
    /// # Errors
    /// Gives the tokens back if the reader has no room or is gone.
    pub fn try_send(&self, tokens: Vec<Token>, metrics: GenerateMetrics) -> Result<(), Vec<Token>> {
        use mpsc::error::TrySendError::{Closed, Full};
        let Some(events) = &self.events else { return Err(tokens) };
        let sent = waking(|| {
            events.try_send(Event { tokens, metrics }).map_err(|error| match error {
                Full(event) | Closed(event) => event.tokens,
            })
        });
        // What a waker panics about has been sent.
        sent.unwrap_or(Ok(()))
    }

    /// Waits until there is room, then hands the tokens over.
    ///
    /// # Errors
    /// Gives the tokens back if the reader is gone.
    pub async fn send(&self, tokens: Vec<Token>, metrics: GenerateMetrics) -> Result<(), Vec<Token>> {
        let Some(events) = &self.events else { return Err(tokens) };
        events.send(Event { tokens, metrics }).await.map_err(|error| error.0.tokens)
    }

    /// Ends the stream, after the tokens already sent.
    pub fn finish(mut self, reason: FinishReason, error: Option<Error>, metrics: GenerateMetrics) {
        if let Some(end) = self.end.take() {
            // The reader may be gone; then nobody needs to know.
            waking(|| drop(end.send(End { reason, error, metrics })));
        }
    }

    /// Ends the stream with an error and the reason that goes with it.
    pub fn fail(self, error: Error, metrics: GenerateMetrics) {
        let reason = match error {
            Error::Cancelled => FinishReason::Cancelled,
            _ => FinishReason::Error,
        };
        self.finish(reason, Some(error), metrics);
    }

    /// The token that fires when the reader is gone or the request is cancelled.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}

impl Drop for TokenSender {
    fn drop(&mut self) {
        if let Some(end) = self.end.take().filter(|_| thread::panicking()) {
            let error = Some(Error::internal("what computed this stream ended in a panic"));
            let metrics = GenerateMetrics::default();
            waking(|| drop(end.send(End { reason: FinishReason::Error, error, metrics })));
        }
        let (events, end) = (self.events.take(), self.end.take());
        waking(|| drop((end, events)));
    }
}

/// Does what wakes a reader, whose waker may panic: that is its own fault and no reason to end what others wait for.
/// `None` if it has panicked.
pub(crate) fn waking<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}
