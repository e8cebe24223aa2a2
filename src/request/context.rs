//! The context of a request, from its call to its end.

use std::{sync::Arc, time::Instant};

use super::{ModelState, admission::Permit, state::InFlight, unless_over};
use crate::{Error, GenerateMetrics, Result, TokenSender, stream::End};

/// The part of a request that is the same for every backend, from its call to its end: stream, deadline, admission,
/// counters.
pub struct RequestContext {
    pub sender: TokenSender,
    pub submitted: Instant,
    pub deadline: Option<Instant>,
    pub span: tracing::Span,
    pub state: Arc<ModelState>,
    /// Freed at the end of a stream, and at [`begin`](Self::begin) for a prompt of a batch.
    pub permit: Permit,
    pub in_flight: InFlight,
}

impl RequestContext {
    /// Notes that the request begins to run.
    pub fn begin(&mut self) {
        self.permit.begin();
    }

    /// Why nobody waits for the answer any more, if so.
    pub fn expired(&self, now: Instant) -> Option<Error> {
        if self.sender.cancellation().is_cancelled() {
            Some(Error::Cancelled)
        } else {
            self.deadline.is_some_and(|deadline| deadline <= now).then_some(Error::DeadlineExceeded)
        }
    }

    /// Runs `work` unless the request is cancelled or dropped, its deadline passes, or the model closes, before `work`
    /// is done.
    ///
    /// # Errors
    /// The reason that came first, or the error of `work`.
    pub async fn unless_over<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let open = async {
            tokio::select! {
                biased;
                () = self.state.closing.cancelled() => Err(self.state.closed_error()),
                done = work => done,
            }
        };
        unless_over(Some(self.sender.cancellation()), self.deadline, open).await
    }

    /// Ends a request that never ran.
    pub fn fail(self, error: Error) {
        let waited = self.submitted.elapsed();
        let metrics = GenerateMetrics { queue_duration: waited, total_duration: waited, ..GenerateMetrics::default() };
        self.end(error.into(), metrics);
    }

    /// Ends the request: counts it, then tells the stream.
    pub fn end(self, end: End, metrics: GenerateMetrics) {
        let Self { sender, span, state, permit, in_flight, .. } = self;
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
        // A reader that sees the end finds it counted, and the permit free.
        drop((in_flight, permit));
        state.ended(&end, metrics);
        sender.finish(end.reason, end.error, metrics);
    }
}
