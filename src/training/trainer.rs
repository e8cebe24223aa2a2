use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use rayon::ThreadPoolBuilder;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio_util::sync::CancellationToken;

use super::{
    Adapter, LoraConfig, TrainConfig, TrainExample, TrainStream,
    lora::{self, Learned},
    run::Run,
};
use crate::{
    Error, Result,
    decoder::Network,
    engine::{Adapters, Engine, Turns, not_started},
    text::TextProcessor,
};

/// What trains a model's adapters.
pub struct Trainer {
    /// The worker's, whose memory is to be free when it has ended.
    network: Weak<Network>,
    text: Arc<TextProcessor>,
    turns: Arc<Turns>,
    /// Where what is learned comes into use.
    adapters: Arc<Adapters>,
    /// Fires when the model is to close.
    closing: CancellationToken,
    /// The adapter that was applied last.
    applied: Mutex<Option<Arc<Learned>>>,
    /// The place of the one training at a time.
    place: Arc<Semaphore>,
}

impl Trainer {
    pub fn new(network: &Arc<Network>, text: Arc<TextProcessor>, engine: &Engine) -> Self {
        let (network, closing) = (Arc::downgrade(network), engine.closing());
        let (turns, adapters) = (engine.turns.clone(), engine.adapters.clone());
        let (applied, place) = (Mutex::default(), Arc::new(Semaphore::new(1)));
        Self { network, text, turns, adapters, closing, applied, place }
    }

    pub fn text(&self) -> &TextProcessor {
        &self.text
    }

    fn network(&self) -> Result<Arc<Network>> {
        let open = self.network.upgrade().filter(|_| !self.closing.is_cancelled());
        open.ok_or(Error::Closed)
    }

    pub fn apply_lora(&self, config: &LoraConfig) -> Result<Box<dyn Adapter>> {
        let learned = Arc::new(Learned::new(lora::begin(self.network()?.sites(), config)?));
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = Some(learned.clone());
        Ok(Box::new(learned))
    }

    fn applied(&self) -> Result<Arc<Learned>> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(learned) = &*applied {
            return Ok(learned.clone());
        }
        let learned = Arc::new(Learned::new(lora::begin(self.network()?.sites(), &LoraConfig::default())?));
        *applied = Some(learned.clone());
        Ok(learned)
    }

    pub fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream {
        self.start(examples, config).unwrap_or_else(TrainStream::failed)
    }

    fn start(&self, examples: Vec<TrainExample>, config: TrainConfig) -> Result<TrainStream> {
        config.validate()?;
        let (network, learned) = (self.network()?, self.applied()?);
        let place = self.place.clone().try_acquire_owned();
        let place = place.map_err(|error| match error {
            TryAcquireError::NoPermits => Error::config("examples", "another training of this model is under way"),
            TryAcquireError::Closed => Error::Closed,
        })?;
        let (sender, stream) = TrainStream::channel();
        let (text, turns) = (self.text.clone(), self.turns.clone());
        let (adapters, closing) = (self.adapters.clone(), self.closing.clone());
        let run = Run { network, text, turns, adapters, closing, learned, config, sender };
        // Products run on threads of its own: those of the worker are never idle.
        let threads = ThreadPoolBuilder::new().thread_name(|i| format!("training {i}")).build();
        let threads = threads.map_err(not_started)?;
        let work = move || {
            let ended = catch_unwind(AssertUnwindSafe(|| threads.install(|| run.all(&examples))));
            let ended = ended.unwrap_or_else(|panic| Err(Error::panicked("a training", panic.as_ref())));
            // Whoever learns of the end may begin anew.
            let sender = run.end();
            drop(place);
            sender.end(ended);
        };
        thread::Builder::new().name("tokenflow training".into()).spawn(work).map_err(not_started)?;
        Ok(stream)
    }

    /// Waits until no training is under way, and lets none begin.
    pub async fn close(&self) {
        // Another call may have closed it.
        let _place = self.place.acquire().await;
        self.place.close();
    }
}
