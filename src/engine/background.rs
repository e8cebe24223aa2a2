use std::sync::{Arc, OnceLock, Weak};

use rayon::ThreadPoolBuilder;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio_util::sync::CancellationToken;

use super::{Adapters, ComputeGuard, ComputeLock, Engine, not_started};
use crate::{
    Error, Result,
    decoder::Network,
    kernels::threads::{PoolScope, ThreadPool},
    text::TextProcessor,
};

/// What computes with a model beside its requests: takes turns with their passes, which go first.
#[derive(Clone)]
pub struct BackgroundJobs {
    /// The worker's, whose memory is to be free when it has ended.
    network: Weak<Network>,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    compute_lock: Arc<ComputeLock>,
    threads: usize,
    /// Fires when the model is to close.
    closing: CancellationToken,
    /// Read as long as anything has the network.
    in_use: Arc<RwLock<()>>,
}

/// The network for a piece of work.
pub struct ModelLease {
    pub network: Arc<Network>,
    compute_lock: Arc<ComputeLock>,
    threads: usize,
    pool: OnceLock<ThreadPool>,
    closing: CancellationToken,
    _in_use: OwnedRwLockReadGuard<()>,
}

impl BackgroundJobs {
    pub fn new(network: &Arc<Network>, text: Arc<TextProcessor>, engine: &Engine) -> Self {
        let Engine { adapters, compute_lock, state, threads, .. } = engine;
        let (adapters, compute_lock, closing) = (adapters.clone(), compute_lock.clone(), state.closing.clone());
        let network = Arc::downgrade(network);
        Self { network, text, adapters, compute_lock, threads: *threads, closing, in_use: Arc::default() }
    }

    /// # Errors
    /// [`Error::Closed`]
    pub fn lease(&self) -> Result<ModelLease> {
        let in_use = self.in_use.clone().try_read_owned().map_err(|_| Error::Closed)?;
        let network = self.network.upgrade().filter(|_| !self.closing.is_cancelled()).ok_or(Error::Closed)?;
        let (compute_lock, closing) = (self.compute_lock.clone(), self.closing.clone());
        Ok(ModelLease { network, compute_lock, threads: self.threads, pool: OnceLock::new(), closing, _in_use: in_use })
    }

    /// Waits until nothing has the network; the model is to be closing.
    pub async fn ended(&self) {
        drop(self.in_use.write().await);
    }
}

impl ModelLease {
    /// Waits for a turn of a piece of work, a layer say.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn slot(&self) -> Result<ComputeSlot<'_>> {
        self.check_open()?;
        let guard = self.compute_lock.lock_for_job();
        Ok(ComputeSlot { _pass: self.pool.get().map(ThreadPool::begin), _guard: guard })
    }

    /// # Errors
    /// [`Error::Closed`]
    pub fn check_open(&self) -> Result<()> {
        if self.closing.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Waits until the model is to close.
    pub async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Runs work shared by threads of its own: those of the worker are never idle.
    pub fn on_threads<R: Send>(&self, name: &'static str, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        if self.pool.get().is_none() {
            // Only if another thread was faster is there one now, and that is as good.
            let _ = self.pool.set(ThreadPool::new(name, self.threads).map_err(not_started)?);
        }
        // What candle shares with rayon's threads stays on one.
        let thread = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("{name} 0")).build();
        thread.map_err(not_started)?.install(work)
    }
}

/// A turn on all threads, until it is dropped.
pub struct ComputeSlot<'a> {
    _pass: Option<PoolScope<'a>>,
    _guard: ComputeGuard<'a>,
}
