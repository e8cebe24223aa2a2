use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{
    Error, Result,
    decoder::{Adapter, Sites},
};

/// Names an adapter for as long as its model lives: no other one gets it.
pub type AdapterId = u64;

/// The adapters of a model, by name. A request holds the one it uses, so what changes here concerns later ones only.
pub struct Adapters {
    /// The worker's, whose memory is to be free when it has ended.
    sites: Option<Weak<Sites>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_name: BTreeMap<String, Loaded>,
    /// For requests that name none.
    default: Option<Loaded>,
    next_id: AdapterId,
}

/// An adapter that is there.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub id: AdapterId,
    pub adapter: Arc<Adapter>,
}

impl Adapters {
    pub fn new(sites: Option<&Arc<Sites>>) -> Self {
        Self { sites: sites.map(Arc::downgrade), known: Mutex::default() }
    }

    /// What an adapter can change.
    pub fn sites(&self) -> Result<Arc<Sites>> {
        let sites = self.sites.as_ref().ok_or_else(|| Error::config("adapter", "this model takes none"))?;
        sites.upgrade().ok_or(Error::Closed)
    }

    /// Adds an adapter, in the place of another one of this name.
    pub fn add(&self, name: &str, adapter: Adapter) {
        let mut known = self.known();
        let loaded = known.loaded(adapter);
        known.by_name.insert(name.to_owned(), loaded);
    }

    /// Sets the adapter of requests that name none.
    pub fn set_default(&self, adapter: Adapter) {
        let mut known = self.known();
        known.default = Some(known.loaded(adapter));
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let mut known = self.known();
        known.by_name.remove(name).map(drop).ok_or_else(|| known.unknown(name))
    }

    pub fn names(&self) -> Vec<String> {
        self.known().by_name.keys().cloned().collect()
    }

    /// The one of this name, or that of requests that name none.
    pub fn get(&self, name: Option<&str>) -> Result<Option<Loaded>> {
        let known = self.known();
        match name {
            None => Ok(known.default.clone()),
            Some(name) => known.by_name.get(name).cloned().map(Some).ok_or_else(|| known.unknown(name)),
        }
    }

    /// The memory they take.
    pub fn bytes(&self) -> usize {
        let known = self.known();
        known.by_name.values().chain(&known.default).map(|loaded| loaded.adapter.bytes()).sum()
    }

    /// Forgets all.
    pub fn clear(&self) {
        *self.known() = Known::default();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn loaded(&mut self, adapter: Adapter) -> Loaded {
        self.next_id += 1;
        Loaded { id: self.next_id, adapter: Arc::new(adapter) }
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        Error::config("adapter", format!("{name:?} is not loaded; loaded are: {}", names.join(", ")))
    }
}
