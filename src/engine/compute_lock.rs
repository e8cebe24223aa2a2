//! The lock between forward passes and background jobs.

use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// A lock with priority: forward passes go before background jobs.
#[derive(Debug, Default)]
pub struct ComputeLock {
    busy: Mutex<bool>,
    free: Condvar,
    passes: AtomicUsize,
}

/// The held lock.
#[derive(Debug)]
pub struct ComputeGuard<'a> {
    lock: &'a ComputeLock,
}

impl ComputeLock {
    /// Locks for a forward pass.
    pub fn lock_for_pass(&self) -> ComputeGuard<'_> {
        self.passes.fetch_add(1, Ordering::SeqCst);
        let guard = self.take(|_| false);
        self.passes.fetch_sub(1, Ordering::SeqCst);
        guard
    }

    /// Locks for a part of a background job, after all passes that wait.
    pub fn lock_for_job(&self) -> ComputeGuard<'_> {
        self.take(|lock| lock.passes.load(Ordering::SeqCst) > 0)
    }

    fn take(&self, yields: impl Fn(&Self) -> bool) -> ComputeGuard<'_> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |busy: &mut bool| *busy || yields(self);
        let mut busy: MutexGuard<'_, bool> = self.free.wait_while(busy, waits).unwrap_or_else(PoisonError::into_inner);
        *busy = true;
        ComputeGuard { lock: self }
    }
}

impl Drop for ComputeGuard<'_> {
    fn drop(&mut self) {
        *self.lock.busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.lock.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn waiting_passes_go_first() {
        let compute_lock = ComputeLock::default();
        let (sender, order) = mpsc::channel();
        thread::scope(|scope| {
            let held = compute_lock.lock_for_pass();
            for name in ["background", "pass"] {
                let (compute_lock, sender) = (&compute_lock, sender.clone());
                scope.spawn(move || {
                    let _guard =
                        if name == "pass" { compute_lock.lock_for_pass() } else { compute_lock.lock_for_job() };
                    sender.send(name).unwrap();
                });
                thread::sleep(Duration::from_millis(50));
            }
            drop(held);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["pass", "background"]);
    }
}
