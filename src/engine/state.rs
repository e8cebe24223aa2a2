use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio_util::sync::CancellationToken;

use super::ticket::End;
use crate::{Error, FinishReason, GenerateMetrics, ModelStats};

/// What the handle and the threads of an engine share.
#[derive(Default)]
pub struct State {
    /// Fires when the model is to close.
    pub closing: CancellationToken,
    /// Fires when the worker has freed everything.
    pub closed: CancellationToken,
    /// Requests between their call and their end.
    in_flight: Arc<AtomicUsize>,
    last: Mutex<LastOperation>,
    stats: Mutex<ModelStats>,
}

#[derive(Default, Clone)]
struct LastOperation {
    metrics: GenerateMetrics,
    error: Option<Error>,
}

/// Counts a request as long as it lives.
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(self.in_flight.clone())
    }

    /// Requests between their call and their end.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts the end of a request.
    pub fn ended(&self, end: &End, metrics: GenerateMetrics) {
        let mut stats = lock(&self.stats);
        let count = match end.reason {
            FinishReason::Stop => &mut stats.stopped,
            FinishReason::Length => &mut stats.length_limited,
            FinishReason::Cancelled => &mut stats.cancelled,
            FinishReason::Error => &mut stats.failed,
        };
        *count += 1;
        drop(stats);
        self.record(metrics, end.error.clone());
    }

    /// Notes how an operation ended.
    pub fn record(&self, metrics: GenerateMetrics, error: Option<Error>) {
        *lock(&self.last) = LastOperation { metrics, error };
    }

    /// How the operation that ended last went.
    pub fn last(&self) -> (GenerateMetrics, Option<Error>) {
        let last = lock(&self.last).clone();
        (last.metrics, last.error)
    }

    /// Changes the figures.
    pub fn update(&self, change: impl FnOnce(&mut ModelStats)) {
        change(&mut lock(&self.stats));
    }

    pub fn stats(&self) -> ModelStats {
        let mut stats = *lock(&self.stats);
        stats.waiting = self.in_flight().saturating_sub(stats.running);
        stats
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The figures are whole after every statement, whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
