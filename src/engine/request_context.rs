use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_timer::Delay;
use tokio_util::sync::CancellationToken;

use super::{
    admission::Permit,
    state::{InFlight, ModelState},
};
use crate::{Error, FinishReason, GenerateMetrics, Result, TokenSender};

/// What a request carries from its call to its end: who waits for it, until when, and the place in
/// the queue that it takes.
pub struct RequestContext {
    pub sender: TokenSender,
    pub submitted: Instant,
    pub deadline: Option<Instant>,
    /// Given back when the request ends, or when it begins to run if it is of a batch.
    pub place: Option<Permit>,
    pub span: tracing::Span,
    pub state: Arc<ModelState>,
    pub in_flight: InFlight,
}

/// Waits for a time, or for ever if there is none.
pub async fn reached(time: Option<Instant>) {
    match time.map(|time| time.saturating_duration_since(Instant::now())) {
        Some(Duration::ZERO) => {}
        Some(left) => Delay::new(left).await,
        None => std::future::pending().await,
    }
}

/// Does work unless a request is cancelled, or its deadline comes, before it is done.
pub async fn unless_over<T>(
    cancellation: Option<&CancellationToken>,
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let cancelled = async {
        match cancellation {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = cancelled => Err(Error::Cancelled),
        () = reached(deadline) => Err(Error::DeadlineExceeded),
        done = work => done,
    }
}

/// Why a request is over.
#[derive(Debug, Clone)]
pub struct End {
    pub reason: FinishReason,
    pub error: Option<Error>,
}

impl End {
    pub fn stop() -> Self {
        Self { reason: FinishReason::Stop, error: None }
    }

    pub fn length() -> Self {
        Self { reason: FinishReason::Length, error: None }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::Cancelled => FinishReason::Cancelled,
            _ => FinishReason::Error,
        };
        Self { reason, error: Some(error) }
    }
}

impl RequestContext {
    /// Why nobody waits for the answer any more, if so.
    pub fn expired(&self, now: Instant) -> Option<Error> {
        if self.sender.cancellation().is_cancelled() {
            Some(Error::Cancelled)
        } else {
            self.deadline.is_some_and(|deadline| deadline <= now).then_some(Error::DeadlineExceeded)
        }
    }

    /// Does work unless nobody waits for the answer any more before it is done.
    pub async fn unless_expired<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        unless_over(Some(self.sender.cancellation()), self.deadline, work).await
    }

    /// Ends a request that never ran.
    pub fn fail(self, error: Error) {
        let waited = self.submitted.elapsed();
        let metrics = GenerateMetrics { queue_duration: waited, total_duration: waited, ..GenerateMetrics::default() };
        self.end(error.into(), metrics);
    }

    /// Ends the request.
    pub fn end(self, end: End, metrics: GenerateMetrics) {
        let Self { sender, span, state, place, in_flight, .. } = self;
        tracing::debug!(
            parent: &span,
            reason = ?end.reason,
            error = end.error.as_ref().map(tracing::field::display),
            prompt_tokens = metrics.prompt_tokens,
            cached_prompt_tokens = metrics.cached_prompt_tokens,
            generated_tokens = metrics.generated_tokens,
            queue_ms = metrics.queue_duration.as_millis() as u64,
            time_to_first_token_ms = metrics.time_to_first_token.as_millis() as u64,
            total_ms = metrics.total_duration.as_millis() as u64,
            "request ended"
        );
        // Whoever learns of the end finds it counted, and its place free.
        drop((in_flight, place));
        state.ended(&end, metrics);
        sender.finish(end.reason, end.error, metrics);
    }
}
