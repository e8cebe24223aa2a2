//! Background jobs, which share a model with its requests.

use std::sync::{Arc, OnceLock, Weak};

use rayon::ThreadPoolBuilder;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio_util::sync::CancellationToken;

use super::{
    Engine,
    compute_lock::{ComputeGuard, ComputeLock},
    handle::not_started,
};
use crate::{
    Error, Result,
    adapters::Adapters,
    kernels::threads::{PoolScope, ThreadPool},
    text::TextProcessor,
};

/// Access to a model for background jobs, training and inspection say, which take turns with the passes of its
/// requests. `N` is the network.
pub struct BackgroundJobs<N> {
    /// Owned by the worker: closing the model frees it.
    network: Weak<N>,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    compute_lock: Arc<ComputeLock>,
    threads: usize,
    /// Fires when the model is to close.
    closing: CancellationToken,
    /// Read-locked by each lease.
    in_use: Arc<RwLock<()>>,
}

/// The network, for the time of a job. The model closes after its leases have been dropped.
pub struct ModelLease<N> {
    pub network: Arc<N>,
    compute_lock: Arc<ComputeLock>,
    threads: usize,
    pool: OnceLock<ThreadPool>,
    closing: CancellationToken,
    _in_use: OwnedRwLockReadGuard<()>,
}

impl<N> BackgroundJobs<N> {
    pub fn new(network: &Arc<N>, text: Arc<TextProcessor>, engine: &Engine) -> Self {
        let Engine { adapters, compute_lock, state, threads, .. } = engine;
        let (adapters, compute_lock, closing) = (adapters.clone(), compute_lock.clone(), state.closing.clone());
        let network = Arc::downgrade(network);
        Self { network, text, adapters, compute_lock, threads: *threads, closing, in_use: Arc::default() }
    }

    /// Leases the network.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn lease(&self) -> Result<ModelLease<N>> {
        let in_use = self.in_use.clone().try_read_owned().map_err(|_| Error::Closed)?;
        let network = self.network.upgrade().filter(|_| !self.closing.is_cancelled()).ok_or(Error::Closed)?;
        let (compute_lock, closing) = (self.compute_lock.clone(), self.closing.clone());
        Ok(ModelLease { network, compute_lock, threads: self.threads, pool: OnceLock::new(), closing, _in_use: in_use })
    }

    /// Waits until all leases of a closing model have been dropped.
    pub async fn ended(&self) {
        drop(self.in_use.write().await);
    }
}

impl<N> ModelLease<N> {
    /// Waits for the time of a part of a job, such as a layer.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn slot(&self) -> Result<ComputeSlot<'_>> {
        self.check_open()?;
        let guard = self.compute_lock.lock_for_job();
        Ok(ComputeSlot { _pass: self.pool.get().map(ThreadPool::begin), _guard: guard })
    }

    /// Whether the job may go on.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn check_open(&self) -> Result<()> {
        if self.closing.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Waits until the model closes.
    pub async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Runs a job on threads of its own: the worker's threads are never free.
    pub fn on_threads<R: Send>(&self, name: &'static str, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        if self.pool.get().is_none() {
            // Fails if another thread has set it meanwhile, which is as good.
            let _ = self.pool.set(ThreadPool::new(name, self.threads).map_err(not_started)?);
        }
        // A pool of one thread: work that candle shares with rayon's threads stays on it.
        let thread = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("{name} 0")).build();
        thread.map_err(not_started)?.install(work)
    }
}

/// The time of a part of a job, until it is dropped: the compute lock, and the threads of the job.
pub struct ComputeSlot<'a> {
    _pass: Option<PoolScope<'a>>,
    _guard: ComputeGuard<'a>,
}
