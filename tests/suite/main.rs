//! The crate through its public API, on the tiny models in `tests/golden` and on SmolLM2.

mod adapters;
mod api;
mod bad_input;
mod discover;
mod engine;
mod golden;
mod hostile;
mod inspect;
mod instruction_sets;
mod invariance;
mod lookup;
#[path = "../../examples/support/models.rs"]
mod models;
mod perplexity;
#[path = "../support/same_answers.rs"]
mod same_answers;
mod score;
#[path = "../support/scripted.rs"]
mod scripted;
mod serving;
mod smollm2;
mod templates;
mod training;
mod trust;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokenflow::{LoadConfig, TextModel, load_model};

/// A file or directory of `tests/golden`.
/// The variable names another folder of models, written by `golden/sweep.py`, for the tests of all [`directories`].
fn golden_path(name: &str) -> PathBuf {
    let committed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("TOKENFLOW_GOLDEN").map_or_else(committed, PathBuf::from).join(name)
}

/// All Hugging Face directories of `tests/golden`: every architecture, in both styles of configuration.
fn directories() -> Vec<String> {
    let entries = golden_path("").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let models = entries.filter(|path| path.join("config.json").exists());
    let mut names: Vec<_> = models.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

async fn golden_model(name: &str) -> Box<dyn TextModel> {
    golden_model_with(name, LoadConfig::new()).await
}

async fn golden_model_with(name: &str, config: LoadConfig) -> Box<dyn TextModel> {
    load_model(golden_path(name), config).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn read_json(name: &str) -> serde_json::Value {
    let path = golden_path(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A directory that is removed when it is dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tokenflow-{}-{number}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of a golden directory.
    fn copy_of(golden: &str, name: &str) -> Self {
        let copy = Self::new(name);
        for entry in golden_path(golden).read_dir().unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
        }
        copy
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
