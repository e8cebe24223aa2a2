use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::OwnedSemaphorePermit;

use crate::stream::waking;

/// Bounds the requests of streams: those that have begun, those that could begin at once, and `limit` that wait.
pub struct AdmissionQueue {
    /// Requests between their call and their end.
    admitted: Arc<AtomicUsize>,
    /// Sequences that have begun or could begin at once.
    capacity: AtomicUsize,
    limit: usize,
}

/// A request's place among those of streams, or among those that wait in batches.
pub struct Permit {
    admitted: Option<Arc<AtomicUsize>>,
    batch: Option<OwnedSemaphorePermit>,
}

impl AdmissionQueue {
    pub fn new(limit: usize, capacity: usize) -> Self {
        Self { admitted: Arc::default(), capacity: AtomicUsize::new(capacity), limit }
    }

    /// Requests that may wait beyond those that could run.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a place if there is one.
    pub fn enter(&self) -> Option<Permit> {
        let most = self.limit.saturating_add(self.capacity.load(Ordering::SeqCst));
        let next = |admitted: usize| (admitted < most).then_some(admitted + 1);
        self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).ok()?;
        Some(Permit { admitted: Some(self.admitted.clone()), batch: None })
    }

    /// Notes how many sequences have begun or could begin at once.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::SeqCst);
    }
}

impl Permit {
    /// Notes that the request begins to run: a batch may send the next one.
    pub fn begin(&mut self) {
        let permit = self.batch.take();
        // It wakes whoever waits for it, and a waker may panic.
        let _ = waking(|| drop(permit));
    }
}

impl From<OwnedSemaphorePermit> for Permit {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self { admitted: None, batch: Some(permit) }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(admitted) = self.admitted.take() {
            admitted.fetch_sub(1, Ordering::SeqCst);
        }
        self.begin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_could_run_take_no_place_of_those_that_wait() {
        let queue = AdmissionQueue::new(2, 3);
        let mut places: Vec<_> = std::iter::from_fn(|| queue.enter()).take(10).collect();
        assert_eq!(places.len(), 5);
        // Three have begun, and no more could.
        places.iter_mut().take(3).for_each(Permit::begin);
        queue.set_capacity(3);
        assert!(queue.enter().is_none());
        // One of them ends.
        places.truncate(4);
        places.extend(queue.enter());
        assert!(queue.enter().is_none());
        assert_eq!(places.len(), 5);
    }
}
