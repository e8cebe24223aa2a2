use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::OwnedSemaphorePermit;

/// Bounds the requests that wait: `limit` of them beyond those that could run at once.
pub struct Queue {
    waiting: Arc<AtomicUsize>,
    /// Sequences that could run beside those that do.
    idle: AtomicUsize,
    limit: usize,
}

/// A request's place among those that wait.
pub struct Place {
    waiting: Option<Arc<AtomicUsize>>,
    batch: Option<OwnedSemaphorePermit>,
}

impl Queue {
    pub fn new(limit: usize, idle: usize) -> Self {
        Self { waiting: Arc::default(), idle: AtomicUsize::new(idle), limit }
    }

    /// Requests that may wait beyond those that could run.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a place if there is one.
    pub fn enter(&self) -> Option<Place> {
        let most = self.limit.saturating_add(self.idle.load(Ordering::SeqCst));
        let next = |waiting: usize| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).ok()?;
        Some(Place { waiting: Some(self.waiting.clone()), batch: None })
    }

    /// Notes how many sequences could run beside those that do. Those that begin to run give their places back after it.
    pub fn set_idle(&self, idle: usize) {
        self.idle.store(idle, Ordering::SeqCst);
    }
}

impl From<OwnedSemaphorePermit> for Place {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self { waiting: None, batch: Some(permit) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let permit = self.batch.take();
        // It wakes whoever waits for it, and a waker may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(permit)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_could_run_take_no_place_of_those_that_wait() {
        let queue = Queue::new(2, 3);
        let mut places: Vec<_> = std::iter::from_fn(|| queue.enter()).take(10).collect();
        assert_eq!(places.len(), 5);
        // Three begin to run.
        queue.set_idle(0);
        places.truncate(2);
        assert!(queue.enter().is_none());
        // One of them ends.
        queue.set_idle(1);
        places.extend(queue.enter());
        assert!(queue.enter().is_none());
        assert_eq!(places.len(), 3);
    }
}
