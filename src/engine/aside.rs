use std::sync::{Arc, OnceLock, Weak};

use rayon::ThreadPoolBuilder;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tokio_util::sync::CancellationToken;

use super::{Adapters, Engine, Turn, Turns, not_started};
use crate::{
    Error, Result,
    decoder::Network,
    kernels::team::{Pass, Team},
    text::TextProcessor,
};

/// What computes with a model aside from its requests: takes turns with their passes, which go first.
#[derive(Clone)]
pub struct Aside {
    /// The worker's, whose memory is to be free when it has ended.
    network: Weak<Network>,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    turns: Arc<Turns>,
    threads: usize,
    /// Fires when the model is to close.
    closing: CancellationToken,
    /// Read as long as anything has the network.
    in_use: Arc<RwLock<()>>,
}

/// The network for a piece of work.
pub struct Access {
    pub network: Arc<Network>,
    turns: Arc<Turns>,
    threads: usize,
    team: OnceLock<Team>,
    closing: CancellationToken,
    _in_use: OwnedRwLockReadGuard<()>,
}

impl Aside {
    pub fn new(network: &Arc<Network>, text: Arc<TextProcessor>, engine: &Engine) -> Self {
        let Engine { adapters, turns, state, threads, .. } = engine;
        let (adapters, turns, closing) = (adapters.clone(), turns.clone(), state.closing.clone());
        let network = Arc::downgrade(network);
        Self { network, text, adapters, turns, threads: *threads, closing, in_use: Arc::default() }
    }

    /// # Errors
    /// [`Error::Closed`]
    pub fn access(&self) -> Result<Access> {
        let in_use = self.in_use.clone().try_read_owned().map_err(|_| Error::Closed)?;
        let network = self.network.upgrade().filter(|_| !self.closing.is_cancelled()).ok_or(Error::Closed)?;
        let (turns, closing) = (self.turns.clone(), self.closing.clone());
        Ok(Access { network, turns, threads: self.threads, team: OnceLock::new(), closing, _in_use: in_use })
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
    pub fn turn(&self) -> Result<Shift<'_>> {
        self.check_open()?;
        let turn = self.turns.aside();
        Ok(Shift { _pass: self.team.get().map(Team::begin), _turn: turn })
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

    /// Runs work whose turns are shared by threads of its own: those of the worker are never idle.
    pub fn on_threads<R: Send>(&self, name: &'static str, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        if self.team.get().is_none() {
            // Only if another thread was faster is there one now, and that is as good.
            let _ = self.team.set(Team::new(name, self.threads).map_err(not_started)?);
        }
        // What candle shares with rayon's threads stays on one.
        let thread = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("{name} 0")).build();
        thread.map_err(not_started)?.install(work)
    }
}

/// A turn on all threads, until it is dropped.
pub struct Shift<'a> {
    _pass: Option<Pass<'a>>,
    _turn: Turn<'a>,
}
