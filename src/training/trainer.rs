//! Starting trainings on their own threads.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread,
};

use tokio::sync::Semaphore;

use super::{
    Adapter, LoraConfig, TrainConfig, TrainExample, TrainStream, run::TrainingRun, train_stream::TrainWatch,
    trained_adapter::TrainedAdapter,
};
use crate::{Error, Result, decoder::Network, engine::BackgroundJobs, memory};

/// Starts the trainings of a model, one at a time.
pub struct Trainer {
    background: Arc<BackgroundJobs<Network>>,
    /// The adapter that was applied last.
    applied: Mutex<Option<Arc<TrainedAdapter>>>,
    /// Held by the running training.
    slot: Arc<Semaphore>,
    /// The training that was started last. Earlier ones have ended, or end soon.
    latest: Mutex<Option<TrainWatch>>,
}

impl Trainer {
    pub fn new(background: Arc<BackgroundJobs<Network>>) -> Self {
        let (applied, latest) = Default::default();
        Self { background, applied, slot: Arc::new(Semaphore::new(1)), latest }
    }

    pub fn apply_lora(&self, config: &LoraConfig) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self.apply(config)?))
    }

    /// Like `apply_lora`; also waits until the adapter is initialized.
    pub fn apply_lora_blocking(&self, config: &LoraConfig) -> Result<Box<dyn Adapter>> {
        let adapter = self.apply(config)?;
        adapter.origin()?;
        Ok(Box::new(adapter))
    }

    fn apply(&self, config: &LoraConfig) -> Result<Arc<TrainedAdapter>> {
        let lease = self.background.lease()?;
        let Some(path) = &config.initial else {
            let adapter = TrainedAdapter::initialize(lease, config)?;
            *self.applied() = Some(adapter.clone());
            return Ok(adapter);
        };
        let targets = lease.network.targets();
        let (adapter, for_requests) = TrainedAdapter::load(targets, path, config)?;
        let mut applied = self.applied();
        // The training of the adapter before may still run; it no longer publishes.
        applied.iter().for_each(|before| before.is_replaced.store(true, Ordering::Release));
        self.background.adapters.set_default(for_requests)?;
        *applied = Some(adapter.clone());
        Ok(adapter)
    }

    fn applied(&self) -> MutexGuard<'_, Option<Arc<TrainedAdapter>>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter to train: the one applied last, or a default one.
    fn current_adapter(&self) -> Result<Arc<TrainedAdapter>> {
        let mut applied = self.applied();
        if let Some(adapter) = &*applied {
            return Ok(adapter.clone());
        }
        let adapter = TrainedAdapter::initialize(self.background.lease()?, &LoraConfig::default())?;
        *applied = Some(adapter.clone());
        Ok(adapter)
    }

    pub fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream {
        self.start(examples, config).unwrap_or_else(TrainStream::failed)
    }

    fn start(&self, examples: Vec<TrainExample>, config: TrainConfig) -> Result<TrainStream> {
        config.validate()?;
        let lease = self.background.lease()?;
        let (sender, stream) = TrainStream::channel();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.as_ref().is_some_and(TrainWatch::is_wanted) {
            return Err(Error::TrainingInProgress);
        }
        let adapter = self.current_adapter()?;
        *latest = Some(sender.watch());
        drop(latest);
        let (text, adapters) = (self.background.text.clone(), self.background.adapters.clone());
        let run = TrainingRun { lease, text, adapters, adapter, config, sender };
        let slot = self.slot.clone();
        let work = move || {
            let slot = run.acquire_slot(slot);
            let train = || run.lease.on_threads("training", || run.run(&examples));
            let ended = match &slot {
                Ok(_) => catch_unwind(AssertUnwindSafe(train))
                    .unwrap_or_else(|panic| Err(Error::panicked("a training", panic.as_ref()))),
                Err(error) => Err(error.clone()),
            };
            // A reader of the end may start the next training at once.
            let sender = run.into_sender();
            drop(slot);
            memory::trim();
            // A cancelled training ended as its caller asked.
            sender.end(if matches!(ended, Err(Error::Cancelled)) { Ok(()) } else { ended });
        };
        let thread = thread::Builder::new().name("tokenflow training".into()).spawn(work);
        thread.map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
        Ok(stream)
    }
}
