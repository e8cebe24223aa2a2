//! Admission: the bounded queue.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result, stream::waking};

/// Prompts of batches that are admitted and wait. Few, so that no stream waits behind more of them.
const BATCH_PERMITS: usize = 64;

/// Bounds the requests of a model. A stream is admitted or refused at once: as many as run or could run are admitted,
/// and `limit` more that wait. Prompts of batches have permits of their own and wait for one.
#[derive(Debug)]
pub struct AdmissionQueue {
    /// Streams between their call and their end.
    admitted: Arc<AtomicUsize>,
    /// Sequences that run or could run at once.
    capacity: AtomicUsize,
    limit: usize,
    batch: Arc<Semaphore>,
}

/// An admitted request's place, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    stream: Option<Arc<AtomicUsize>>,
    batch: Option<OwnedSemaphorePermit>,
}

impl AdmissionQueue {
    pub fn new(limit: usize, capacity: usize) -> Self {
        let batch = Arc::new(Semaphore::new(BATCH_PERMITS));
        Self { admitted: Arc::default(), capacity: AtomicUsize::new(capacity), limit, batch }
    }

    /// The most requests that are admitted and do not run yet, of an executor that runs `slots`.
    pub fn places(&self, slots: usize) -> usize {
        (self.limit + BATCH_PERMITS).saturating_add(slots).min(Semaphore::MAX_PERMITS)
    }

    /// Admits a stream.
    ///
    /// # Errors
    /// [`Error::Overloaded`]
    pub fn enter(&self) -> Result<Permit> {
        let most = self.limit.saturating_add(self.capacity.load(Ordering::SeqCst));
        let next = |admitted: usize| (admitted < most).then_some(admitted + 1);
        let entered = self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        entered.map_err(|_| Error::Overloaded { limit: self.limit })?;
        Ok(Permit { stream: Some(self.admitted.clone()), batch: None })
    }

    /// Waits for one of the permits of batches; `None` once the model closes.
    pub async fn enter_batch(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.batch).acquire_owned().await.ok()?;
        Some(Permit { stream: None, batch: Some(permit) })
    }

    /// Notes how many sequences run or could run at once.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::SeqCst);
    }

    /// Sends the batches away that wait.
    pub fn close(&self) {
        self.batch.close();
    }
}

impl Permit {
    /// Notes that the request begins to run: a batch may send its next one.
    pub fn begin(&mut self) {
        let permit = self.batch.take();
        // Dropping it wakes the batch, whose waker may panic.
        let _ = waking(|| drop(permit));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(admitted) = self.stream.take() {
            admitted.fetch_sub(1, Ordering::SeqCst);
        }
        self.begin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_could_run_take_no_queue_place() {
        let queue = AdmissionQueue::new(2, 3);
        let mut places: Vec<_> = std::iter::from_fn(|| queue.enter().ok()).take(10).collect();
        assert_eq!(places.len(), 5);
        // Three have begun, and no more could.
        places.iter_mut().take(3).for_each(Permit::begin);
        queue.set_capacity(3);
        assert!(queue.enter().is_err());
        // One of them ends.
        places.truncate(4);
        places.extend(queue.enter().ok());
        assert!(queue.enter().is_err());
        assert_eq!(places.len(), 5);
    }
}
