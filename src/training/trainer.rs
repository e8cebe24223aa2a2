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
use crate::{Error, Result, engine::BackgroundJobs, memory};

/// What trains a model's adapters.
pub struct Trainer {
    background: BackgroundJobs,
    /// The adapter that was applied last.
    applied: Mutex<Option<Arc<TrainedAdapter>>>,
    /// The place of the one training at a time.
    place: Arc<Semaphore>,
    /// The training that began last. Those before it have ended, or are to.
    latest: Mutex<Option<TrainWatch>>,
}

impl Trainer {
    pub fn new(background: BackgroundJobs) -> Self {
        let (applied, latest) = Default::default();
        Self { background, applied, place: Arc::new(Semaphore::new(1)), latest }
    }

    pub fn apply_lora(&self, config: &LoraConfig) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self.apply(config)?))
    }

    /// As `apply_lora`, and waits until the adapter is there.
    pub fn apply_lora_whole(&self, config: &LoraConfig) -> Result<Box<dyn Adapter>> {
        let learned = self.apply(config)?;
        learned.origin()?;
        Ok(Box::new(learned))
    }

    fn apply(&self, config: &LoraConfig) -> Result<Arc<TrainedAdapter>> {
        let lease = self.background.lease()?;
        let Some(path) = &config.initial else {
            let learned = TrainedAdapter::begin(lease, config)?;
            *self.applied() = Some(learned.clone());
            return Ok(learned);
        };
        let targets = lease.network.targets();
        let (learned, adapter) = TrainedAdapter::read(targets, path, config)?;
        let mut applied = self.applied();
        // Its training may not have ended yet.
        applied.iter().for_each(|before| before.is_replaced.store(true, Ordering::Release));
        self.background.adapters.set_default(adapter)?;
        *applied = Some(learned.clone());
        Ok(learned)
    }

    fn applied(&self) -> MutexGuard<'_, Option<Arc<TrainedAdapter>>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter that is to be trained.
    fn learned(&self) -> Result<Arc<TrainedAdapter>> {
        let mut applied = self.applied();
        if let Some(learned) = &*applied {
            return Ok(learned.clone());
        }
        let learned = TrainedAdapter::begin(self.background.lease()?, &LoraConfig::default())?;
        *applied = Some(learned.clone());
        Ok(learned)
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
        let learned = self.learned()?;
        *latest = Some(sender.watch());
        drop(latest);
        let (text, adapters) = (self.background.text.clone(), self.background.adapters.clone());
        let run = TrainingRun { lease, text, adapters, learned, config, sender };
        let place = self.place.clone();
        let work = move || {
            let place = run.wait_for(place);
            let train = || run.lease.on_threads("training", || run.all(&examples));
            let ended = match &place {
                Ok(_) => catch_unwind(AssertUnwindSafe(train))
                    .unwrap_or_else(|panic| Err(Error::panicked("a training", panic.as_ref()))),
                Err(error) => Err(error.clone()),
            };
            // Whoever learns of the end may begin anew.
            let sender = run.end();
            drop(place);
            memory::trim();
            // Whoever dropped the stream, or stopped it, wanted that.
            sender.end(if matches!(ended, Err(Error::Cancelled)) { Ok(()) } else { ended });
        };
        let thread = thread::Builder::new().name("tokenflow training".into()).spawn(work);
        thread.map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
        Ok(stream)
    }
}
