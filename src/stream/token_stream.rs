//! The reader's half of a stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt, stream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    FinishReason, Token, TokenSender,
    channel::{FinalEvent, ReaderRoom, StreamEvent},
};
use crate::{Error, GenerateConfig, GenerateMetrics, Result};

/// The tokens of one answer, as they are generated: a `Stream<Item = Token>`.
///
/// The stream is `Send + 'static` and owns its request.
///
/// # Cancel safety
/// Dropping the stream cancels the request: its slot and its memory are free before the next forward pass. `next()` may
/// be dropped and called again without losing a token. Backpressure: a reader that stops reading pauses its own request
/// only.
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
    events: mpsc::Receiver<StreamEvent>,
    ended: oneshot::Receiver<FinalEvent>,
    buffered: VecDeque<Token>,
    last: Option<FinalEvent>,
    metrics: GenerateMetrics,
    cancellation: CancellationToken,
    room: Arc<ReaderRoom>,
}

impl TokenStream {
    /// A stream and its sending half, for implementers of backends. The stream buffers `buffer` unread steps, at least
    /// one. A cancellation of [`GenerateConfig::cancellation`] cancels it.
    pub fn channel(buffer: usize, config: &GenerateConfig) -> (TokenSender, Self) {
        Self::channel_with_wake(buffer, config, Arc::default())
    }

    /// As [`channel`](Self::channel); `wake` is notified when the reader makes room after
    /// [`has_room`](TokenSender::has_room) has found none.
    pub(crate) fn channel_with_wake(buffer: usize, config: &GenerateConfig, wake: Arc<Notify>) -> (TokenSender, Self) {
        let cancellation = match &config.cancellation {
            Some(token) => token.child_token(),
            None => CancellationToken::new(),
        };
        let (event_sender, events) = mpsc::channel(buffer.clamp(1, Semaphore::MAX_PERMITS));
        let (end_sender, ended) = oneshot::channel();
        let room = Arc::new(ReaderRoom { awaited: AtomicBool::new(false), made: wake });
        let sender = TokenSender {
            events: Some(event_sender),
            end: Some(end_sender),
            cancellation: cancellation.clone(),
            room: room.clone(),
        };
        let (buffered, last, metrics) = Default::default();
        (sender, Self { events, ended, buffered, last, metrics, cancellation, room })
    }

    /// A stream that has ended with `error`.
    pub fn failed(error: Error) -> Self {
        let (sender, stream) = Self::channel(1, &GenerateConfig::new());
        sender.fail(error, GenerateMetrics::default());
        stream.ended()
    }

    /// Takes over an end that has already been sent.
    fn ended(mut self) -> Self {
        self.last = self.ended.try_recv().ok();
        self
    }

    /// A token that cancels this stream only. It may be cloned, sent and used after the stream is dropped.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.cancellation.clone()
    }

    /// Why the stream ended; `Some` once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.last.as_ref().map(|last| last.end.reason)
    }

    /// Why the stream ended early, if it did.
    pub fn err(&self) -> Option<&Error> {
        self.last.as_ref().and_then(|last| last.end.error.as_ref())
    }

    /// Metrics of this stream, up to the last token read.
    pub fn metrics(&self) -> GenerateMetrics {
        self.last.as_ref().map_or(self.metrics, |last| last.metrics)
    }

    /// Reads the stream to its end and returns the whole text.
    ///
    /// # Errors
    /// The error that ended the stream early. The text up to there is lost: read the stream itself to keep it.
    ///
    /// # Cancel safety
    /// Dropping the future drops the stream, which cancels the request.
    pub async fn text(mut self) -> Result<String> {
        let mut text = String::new();
        while let Some(token) = self.next().await {
            text += &token.text;
        }
        self.last.as_mut().and_then(|last| last.end.error.take()).map_or(Ok(text), Err)
    }

    /// The tokens as results, with an error of the stream as the last item, for `?`.
    ///
    /// ```
    /// # use tokenflow::{TokenStream, GenerateConfig, Error};
    /// use futures::TryStreamExt;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let stream = TokenStream::failed(Error::Closed);
    /// let mut results = stream.into_results();
    /// assert!(matches!(results.try_next().await, Err(Error::Closed)));
    /// # }
    /// ```
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
            if this.last.is_some() {
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
            let last = ready!(Pin::new(&mut this.ended).poll(cx))
                .unwrap_or_else(|_| FinalEvent { end: Error::Closed.into(), metrics: this.metrics });
            this.last = Some(last);
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if self.last.is_none() {
            self.cancellation.cancel();
        }
    }
}
