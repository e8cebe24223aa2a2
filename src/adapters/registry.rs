//! The loaded adapters of a model, by name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::LoraAdapter;
use crate::{Error, Result};

/// Identifies an adapter, and is never used again.
pub type AdapterId = u64;

/// The loaded adapters of a model, by name. A request holds the one it uses, so that changes here concern later
/// requests only.
#[derive(Default)]
pub struct Adapters {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_name: BTreeMap<String, LoadedAdapter>,
    /// The adapter of requests that name none.
    default: Option<LoadedAdapter>,
    next_id: AdapterId,
    closed: bool,
}

/// A loaded adapter.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    pub id: AdapterId,
    pub adapter: Arc<LoraAdapter>,
}

impl Adapters {
    /// Adds an adapter. An adapter of the same name is replaced.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn add(&self, name: &str, adapter: LoraAdapter) -> Result<()> {
        let mut known = self.known();
        let loaded = known.loaded(adapter)?;
        known.by_name.insert(name.to_owned(), loaded);
        Ok(())
    }

    /// Sets the adapter of requests that name none.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub fn set_default(&self, adapter: LoraAdapter) -> Result<()> {
        let mut known = self.known();
        known.default = Some(known.loaded(adapter)?);
        Ok(())
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let mut known = self.known();
        known.by_name.remove(name).map(drop).ok_or_else(|| known.unknown(name))
    }

    pub fn names(&self) -> Vec<String> {
        self.known().by_name.keys().cloned().collect()
    }

    /// The adapter of this name, or the default adapter.
    pub fn get(&self, name: Option<&str>) -> Result<Option<LoadedAdapter>> {
        let known = self.known();
        match name {
            None => Ok(known.default.clone()),
            Some(name) => known.by_name.get(name).cloned().map(Some).ok_or_else(|| known.unknown(name)),
        }
    }

    /// Bytes of all adapters.
    pub fn bytes(&self) -> usize {
        let known = self.known();
        known.by_name.values().chain(&known.default).map(|loaded| loaded.adapter.bytes()).sum()
    }

    /// Removes all adapters and accepts no more.
    pub fn close(&self) {
        *self.known() = Known { closed: true, ..Known::default() };
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn loaded(&mut self, adapter: LoraAdapter) -> Result<LoadedAdapter> {
        if self.closed {
            return Err(Error::Closed);
        }
        self.next_id += 1;
        Ok(LoadedAdapter { id: self.next_id, adapter: Arc::new(adapter) })
    }

    fn unknown(&self, name: &str) -> Error {
        let names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        Error::config("adapter", format!("{name:?} is not loaded; loaded are: {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_added_after_closing_are_refused() {
        let adapters = Adapters::default();
        adapters.add("early", LoraAdapter::default()).unwrap();
        adapters.close();
        assert!(matches!(adapters.add("late", LoraAdapter::default()), Err(Error::Closed)));
        assert!(matches!(adapters.set_default(LoraAdapter::default()), Err(Error::Closed)));
        assert!(adapters.names().is_empty() && adapters.get(None).unwrap().is_none());
    }
}
