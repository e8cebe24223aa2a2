use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread,
};

use tokio::sync::Semaphore;

use super::{Adapter, LoraConfig, TrainConfig, TrainExample, TrainStream, lora::Learned, run::Run};
use crate::{Error, Result, engine::Aside, memory};

/// What trains a model's adapters.
pub struct Trainer {
    aside: Aside,
    /// The adapter that was applied last.
    applied: Mutex<Option<Arc<Learned>>>,
    /// The place of the one training at a time.
    place: Arc<Semaphore>,
}

impl Trainer {
    pub fn new(aside: Aside) -> Self {
        Self { aside, applied: Mutex::default(), place: Arc::new(Semaphore::new(1)) }
    }

    pub fn apply_lora(&self, config: &LoraConfig) -> Result<Box<dyn Adapter>> {
        let access = self.aside.access()?;
        let sites = access.network.sites();
        let learned = Arc::new(Learned::begin(sites, config)?);
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if config.initial.is_some() {
            // Its training may not have ended yet.
            applied.iter().for_each(|before| before.is_replaced.store(true, Ordering::Release));
            self.aside.adapters.set_default(sites.resolve(&learned.get())?)?;
        }
        *applied = Some(learned.clone());
        Ok(Box::new(learned))
    }

    fn applied(&self) -> Result<Arc<Learned>> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(learned) = &*applied {
            return Ok(learned.clone());
        }
        let learned = Arc::new(Learned::begin(self.aside.access()?.network.sites(), &LoraConfig::default())?);
        *applied = Some(learned.clone());
        Ok(learned)
    }

    pub fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream {
        self.start(examples, config).unwrap_or_else(TrainStream::failed)
    }

    fn start(&self, examples: Vec<TrainExample>, config: TrainConfig) -> Result<TrainStream> {
        config.validate()?;
        let (access, learned) = (self.aside.access()?, self.applied()?);
        let place = self.place.clone().try_acquire_owned();
        let place = place.map_err(|_| Error::config("examples", "another training of this model is under way"))?;
        let (sender, stream) = TrainStream::channel();
        let (text, adapters) = (self.aside.text.clone(), self.aside.adapters.clone());
        let run = Run { access, text, adapters, learned, config, sender };
        let work = move || {
            let train = || run.access.on_threads("training", || run.all(&examples));
            let ended = catch_unwind(AssertUnwindSafe(train));
            let ended = ended.unwrap_or_else(|panic| Err(Error::panicked("a training", panic.as_ref())));
            // Whoever learns of the end may begin anew.
            let sender = run.end();
            drop(place);
            memory::trim();
            sender.end(ended);
        };
        let thread = thread::Builder::new().name("tokenflow training".into()).spawn(work);
        thread.map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
        Ok(stream)
    }
}
