//! The sender's half of a stream.

use std::{
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    thread,
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    End, FinishReason, Token,
    channel::{FinalEvent, ReaderRoom, StreamEvent, waking},
};
use crate::{Error, GenerateMetrics, Result};

/// The sending half of a [`TokenStream`](super::TokenStream), for implementers of backends.
///
/// Dropping it without [`finish`](Self::finish) ends the stream with [`Error::Closed`].
#[derive(Debug)]
pub struct TokenSender {
    /// `Some` until the sender is dropped.
    pub(super) events: Option<mpsc::Sender<StreamEvent>>,
    pub(super) end: Option<oneshot::Sender<FinalEvent>>,
    pub(super) cancellation: CancellationToken,
    pub(super) room: Arc<ReaderRoom>,
}

impl TokenSender {
    /// Whether the next [`try_send`](Self::try_send) will find room.
    pub fn has_room(&self) -> bool {
        let free = || self.events.as_ref().is_some_and(|events| events.capacity() > 0);
        if free() {
            return true;
        }
        self.room.awaited.store(true, Ordering::SeqCst);
        // The reader may have made room before it could see `awaited`: one of the two sees the other.
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
            events.try_send(StreamEvent { tokens, metrics }).map_err(|error| match error {
                Full(event) | Closed(event) => event.tokens,
            })
        });
        // A panic of the reader's waker comes after the send.
        sent.unwrap_or(Ok(()))
    }

    /// Waits until there is room, then hands the tokens over.
    ///
    /// # Errors
    /// Gives the tokens back if the reader is gone.
    pub async fn send(&self, tokens: Vec<Token>, metrics: GenerateMetrics) -> Result<(), Vec<Token>> {
        let Some(events) = &self.events else { return Err(tokens) };
        events.send(StreamEvent { tokens, metrics }).await.map_err(|error| error.0.tokens)
    }

    /// Ends the stream, after the tokens already sent.
    pub fn finish(mut self, reason: FinishReason, error: Option<Error>, metrics: GenerateMetrics) {
        if let Some(end) = self.end.take() {
            // Fails only if the reader is gone.
            waking(|| drop(end.send(FinalEvent { end: End { reason, error }, metrics })));
        }
    }

    /// Ends the stream with an error: [`FinishReason::Cancelled`] for [`Error::Cancelled`], else
    /// [`FinishReason::Error`].
    pub fn fail(self, error: Error, metrics: GenerateMetrics) {
        let End { reason, error } = error.into();
        self.finish(reason, error, metrics);
    }

    /// The token that fires when the reader is gone or the request is cancelled.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}

impl Drop for TokenSender {
    fn drop(&mut self) {
        if let Some(end) = self.end.take().filter(|_| thread::panicking()) {
            let error = Error::internal("what computed this stream ended in a panic");
            let metrics = GenerateMetrics::default();
            waking(|| drop(end.send(FinalEvent { end: error.into(), metrics })));
        }
        let (events, end) = (self.events.take(), self.end.take());
        waking(|| drop((end, events)));
    }
}
