//! The state and the counters of a model.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio_util::sync::CancellationToken;

use crate::{Error, FinishReason, GenerateMetrics, ModelStats, Result, stream::End};

/// The state that a model's handle shares with its executor: open or closing, counters, the last operation.
#[derive(Default)]
pub struct ModelState {
    /// Fires when the model is to close.
    pub closing: CancellationToken,
    /// The name of a thread that has panicked.
    died: OnceLock<&'static str>,
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

/// Counts a request until it is dropped.
pub struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Closes the model if the thread that holds it panics.
pub struct Alive {
    state: Arc<ModelState>,
    thread: &'static str,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.state.died.set(self.thread);
            self.state.closing.cancel();
        }
    }
}

impl ModelState {
    /// The guard of a thread without which the model cannot go on.
    pub fn alive(self: &Arc<Self>, thread: &'static str) -> Alive {
        Alive { state: self.clone(), thread }
    }

    /// The error of requests to a model that has closed, or whose thread has panicked.
    pub fn closed_error(&self) -> Error {
        match self.died.get() {
            Some(thread) => {
                Error::internal(format!("the model's {thread} thread ended in a panic; load the model anew"))
            }
            None => Error::Closed,
        }
    }

    /// Whether requests are still taken.
    pub fn check_open(&self) -> Result<()> {
        if self.closing.is_cancelled() { Err(self.closed_error()) } else { Ok(()) }
    }

    /// Counts a request, until the guard is dropped.
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

    /// Remembers how an operation ended, for [`last`](Self::last).
    pub fn record(&self, metrics: GenerateMetrics, error: Option<Error>) {
        *lock(&self.last) = LastOperation { metrics, error };
    }

    /// Metrics and error of the operation that ended last.
    pub fn last(&self) -> (GenerateMetrics, Option<Error>) {
        let last = lock(&self.last).clone();
        (last.metrics, last.error)
    }

    /// Changes the counters.
    pub fn update(&self, change: impl FnOnce(&mut ModelStats)) {
        change(&mut lock(&self.stats));
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> ModelStats {
        let mut stats = *lock(&self.stats);
        stats.waiting = self.in_flight().saturating_sub(stats.running);
        stats
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters are consistent after every statement, so a panic of another holder does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_whose_thread_has_died_closes_and_says_so() {
        let state = Arc::new(ModelState::default());
        let of_thread = state.clone();
        thread::spawn(move || drop(of_thread.alive("tokenizer"))).join().unwrap();
        assert!(!state.closing.is_cancelled() && matches!(state.closed_error(), Error::Closed));
        let of_thread = state.clone();
        let dies = thread::spawn(move || {
            let _alive = of_thread.alive("tokenizer");
            panic!("as a test wants it");
        });
        assert!(dies.join().is_err());
        assert!(state.closing.is_cancelled());
        assert!(state.closed_error().to_string().contains("the model's tokenizer thread ended in a panic"));
    }
}
