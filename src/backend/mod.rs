//! Backends, which run models, and their registry.
//!
//! The crate's own backends `cpu`, `cuda` and `metal` need no call to [`register`].

pub(crate) mod native;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use async_trait::async_trait;

use crate::{Error, LoadConfig, Result, TextModel, TrainableModel};

/// A way to load and run models.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Its name in the registry: "cpu", "cuda", …
    fn name(&self) -> &str;

    /// Whether it can run on this machine now, as far as can be told without waiting: callers may be async tasks, so no
    /// device is opened here. A device that turns out not to be usable is [`Error::BackendUnavailable`] when a model is
    /// loaded; then the next best backend is tried, unless this one was asked for by name.
    fn available(&self) -> bool;

    /// Loads the model at `path`.
    ///
    /// # Errors
    /// As [`load_model`](crate::load_model).
    async fn load_model(&self, path: &Path, config: &LoadConfig) -> Result<Box<dyn TextModel>>;

    /// Loads the model at `path` for training, if this backend can train.
    ///
    /// # Errors
    /// As [`load_trainable`](crate::load_trainable).
    async fn load_trainable(&self, path: &Path, config: &LoadConfig) -> Result<Box<dyn TrainableModel>> {
        let _ = config;
        let reason = format!("backend {:?} cannot train {}", self.name(), path.display());
        Err(Error::NotTrainable { reason })
    }
}

type Registry = BTreeMap<String, Arc<dyn Backend>>;

static REGISTRY: LazyLock<RwLock<Registry>> = LazyLock::new(|| {
    let own = native::backends().map(|backend| (backend.name().to_owned(), backend));
    RwLock::new(own.into_iter().collect())
});

/// The order in which [`default_backend`] tries backends. All others come later, by name.
const PREFERENCE: [&str; 5] = ["metal", "cuda", "rocm", "llama_cpp", "cpu"];

/// Backends that send prompts to other machines, so they are used only if asked for by name.
const REMOTE: [&str; 1] = ["openai"];

/// Adds a backend. A backend of the same name is replaced.
pub fn register(backend: Arc<dyn Backend>) {
    let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
    registry.insert(backend.name().to_owned(), backend);
}

/// The backend of this name.
pub fn get(name: &str) -> Option<Arc<dyn Backend>> {
    read(|registry| registry.get(name).cloned())
}

/// The names of all backends, sorted.
pub fn list() -> Vec<String> {
    read(|registry| registry.keys().cloned().collect())
}

/// All backends, sorted by name.
pub fn all() -> Vec<Arc<dyn Backend>> {
    read(|registry| registry.values().cloned().collect())
}

/// The best available backend: metal, cuda, rocm, llama_cpp, cpu, then any other, but no remote one.
///
/// # Errors
/// [`Error::NoBackend`] if none is available.
pub fn default_backend() -> Result<Arc<dyn Backend>> {
    best(all())
}

/// Loads with the backend of this name, or else with the best available one whose device can be opened.
pub(crate) async fn load_with<T, F>(name: Option<&str>, load: impl Fn(Arc<dyn Backend>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    match name {
        Some(name) => load(named(name)?).await,
        None => load_first(ranked(all()), load).await,
    }
}

async fn load_first<T, F>(backends: Vec<Arc<dyn Backend>>, load: impl Fn(Arc<dyn Backend>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut first = None;
    for backend in backends {
        match load(backend).await {
            Err(error @ Error::BackendUnavailable { .. }) => {
                tracing::warn!(%error, "the next best backend is tried");
                first.get_or_insert(error);
            }
            loaded => return loaded,
        }
    }
    Err(first.unwrap_or(Error::NoBackend))
}

/// The available backend of this name.
fn named(name: &str) -> Result<Arc<dyn Backend>> {
    let backend = get(name).ok_or_else(|| Error::BackendNotFound { name: name.to_owned(), known: list() })?;
    if backend.available() {
        Ok(backend)
    } else {
        let reason = "it is not compiled in, or its device is not there".into();
        Err(Error::BackendUnavailable { name: name.to_owned(), reason })
    }
}

fn best(backends: Vec<Arc<dyn Backend>>) -> Result<Arc<dyn Backend>> {
    ranked(backends).into_iter().next().ok_or(Error::NoBackend)
}

/// The available backends that are not remote, the best one first.
fn ranked(mut backends: Vec<Arc<dyn Backend>>) -> Vec<Arc<dyn Backend>> {
    let rank = |name: &str| PREFERENCE.iter().position(|p| *p == name).unwrap_or(PREFERENCE.len());
    backends.retain(|b| !REMOTE.contains(&b.name()) && b.available());
    backends.sort_by_key(|b| (rank(b.name()), b.name().to_owned()));
    backends
}

/// Reads the registry, which is consistent even if a caller has panicked.
fn read<T>(f: impl FnOnce(&Registry) -> T) -> T {
    f(&REGISTRY.read().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(&'static str, bool);

    #[async_trait]
    impl Backend for Fake {
        fn name(&self) -> &str {
            self.0
        }
        fn available(&self) -> bool {
            self.1
        }
        async fn load_model(&self, _: &Path, _: &LoadConfig) -> Result<Box<dyn TextModel>> {
            Err(Error::NoBackend)
        }
    }

    fn best_of(backends: &[(&'static str, bool)]) -> Option<String> {
        let backends = backends.iter().map(|&(name, up)| Arc::new(Fake(name, up)) as Arc<dyn Backend>);
        best(backends.collect()).ok().map(|b| b.name().to_owned())
    }

    #[test]
    fn the_default_follows_the_documented_order() {
        assert_eq!(best_of(&[("cpu", true), ("metal", true), ("cuda", true)]).unwrap(), "metal");
        assert_eq!(best_of(&[("cpu", true), ("cuda", false), ("rocm", true)]).unwrap(), "rocm");
        assert_eq!(best_of(&[("aaa", true), ("cpu", true)]).unwrap(), "cpu");
        assert_eq!(best_of(&[("zzz", true), ("aaa", true), ("cpu", false)]).unwrap(), "aaa");
    }

    #[test]
    fn a_remote_backend_is_never_the_default() {
        assert_eq!(best_of(&[("openai", true)]), None);
        assert!(matches!(best(vec![]).err(), Some(Error::NoBackend)));
    }

    #[tokio::test]
    async fn a_device_that_cannot_be_opened_leaves_loading_to_the_next_backend() {
        let backends = |names: &[&'static str]| -> Vec<Arc<dyn Backend>> {
            ranked(names.iter().map(|name| Arc::new(Fake(name, true)) as Arc<dyn Backend>).collect())
        };
        let load = |backend: Arc<dyn Backend>| async move {
            match backend.name() {
                "cpu" => Ok("cpu"),
                "rocm" => Err(Error::Closed),
                name => Err(Error::BackendUnavailable { name: name.to_owned(), reason: "no device".into() }),
            }
        };
        assert_eq!(load_first(backends(&["cpu", "cuda", "metal"]), load).await.unwrap(), "cpu");
        assert!(matches!(load_first(backends(&["cpu", "cuda", "rocm"]), load).await, Err(Error::Closed)));
        let refused = load_first(backends(&["cuda", "metal"]), load).await;
        assert!(matches!(refused, Err(Error::BackendUnavailable { name, .. }) if name == "metal"));
        assert!(matches!(load_first(backends(&[]), load).await, Err(Error::NoBackend)));
    }
}
