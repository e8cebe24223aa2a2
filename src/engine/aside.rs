use std::sync::{Arc, Weak};

use rayon::ThreadPoolBuilder;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio_util::sync::CancellationToken;

use super::{Adapters, Engine, Turn, Turns, not_started};
use crate::{Error, Result, decoder::Network, text::TextProcessor};

/// What computes with a model aside from its requests: takes turns with their passes, which go first.
#[derive(Clone)]
pub struct Aside {
    /// The worker's, whose memory is to be free when it has ended.
    network: Weak<Network>,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    turns: Arc<Turns>,
    /// Fires when the model is to close.
    closing: CancellationToken,
    /// Read as long as anything has the network.
    in_use: Arc<RwLock<()>>,
}

/// The network for a piece of work.
pub struct Access {
    pub network: Arc<Network>,
    turns: Arc<Turns>,
    closing: CancellationToken,
    _in_use: OwnedRwLockReadGuard<()>,
}

impl Aside {
    pub fn new(network: &Arc<Network>, text: Arc<TextProcessor>, engine: &Engine) -> Self {
        let Engine { adapters, turns, state, .. } = engine;
        let (adapters, turns, closing) = (adapters.clone(), turns.clone(), state.closing.clone());
        Self { network: Arc::downgrade(network), text, adapters, turns, closing, in_use: Arc::default() }
    }

    /// # Errors
    /// [`Error::Closed`]
    pub fn access(&self) -> Result<Access> {
        let in_use = self.in_use.clone().try_read_owned().map_err(|_| Error::Closed)?;
        let network = self.network.upgrade().filter(|_| !self.closing.is_cancelled()).ok_or(Error::Closed)?;
        Ok(Access { network, turns: self.turns.clone(), closing: self.closing.clone(), _in_use: in_use })
    }

    /// Waits until nothing has the network; the model is to be closing.
    pub async fn ended(&self) {
        drop(self.in_use.write().await);
    }
}

impl Access {
    /// Waits for a turn of a piece of work, a layer say.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn turn(&self) -> Result<Turn<'_>> {
        match self.closing.is_cancelled() {
            true => Err(Error::Closed),
            false => Ok(self.turns.aside()),
        }
    }

    /// Runs work on threads of its own: those of the worker are never idle.
    pub fn on_threads<R: Send>(&self, name: &'static str, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        let threads = ThreadPoolBuilder::new().thread_name(move |i| format!("{name} {i}")).build();
        threads.map_err(not_started)?.install(work)
    }
}
