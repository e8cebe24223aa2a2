//! Support for the fuzz targets: a model directory with one hostile file, loaded and run.
//!
//! A target fails by a panic outside the crates that [`catch_panics_of`] lists, by an abort, or by libFuzzer's limits
//! of time and memory. An error is a right answer.

mod gguf;
mod json;
mod model;

use std::{
    env, fs, panic,
    path::{Path, PathBuf},
    process,
    sync::Once,
};

use futures::executor::block_on_stream;
use tokenflow::{GenerateConfig, LoadConfig, Message, TextModel, load_model};
use tokio::runtime::{Builder, Runtime};

pub use model::ModelEdits;

/// Crates whose panics the library answers with an error.
const CAUGHT: [&str; 2] = ["/tokenizers-", "/onig"];
/// A prompt of spaces, digits, marks, and pieces of control tokens.
const PROMPT: &str = "  The tide\u{301} turns 12345678 times…\n\n<|im_end|></s> <｜User｜>\u{200b}ﬁ\t'S 😀";

/// A golden model of the repository.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// A directory for the files of one process, in memory where the system has such a place.
pub fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { memory.to_owned() } else { env::temp_dir() };
    root.join(format!("tokenflow-fuzz-{}", process::id()))
}

/// The scratch directory with the files of a golden model, copied once.
pub fn copy_of(name: &str) -> PathBuf {
    let dir = scratch();
    if !dir.is_dir() {
        fs::create_dir_all(&dir).expect("a scratch directory");
        for entry in golden(name).read_dir().expect("a golden model") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, dir.join(path.file_name().expect("a name"))).expect("a copy");
        }
    }
    dir
}

/// Loads the model at `path` and lets it answer, if it loads.
pub fn load_and_run(path: &Path) {
    with_model(path, config(), |model| {
        run(model, None);
    });
}

/// The configuration of all loads: one thread, and room for a few tokens.
pub fn config() -> LoadConfig {
    LoadConfig::new().threads(1).context_len(128)
}

/// Calls `then` with the model at `path`, if it loads.
pub fn with_model(path: &Path, config: LoadConfig, then: impl FnOnce(&dyn TextModel)) {
    report_panics();
    let runtime = runtime();
    if let Ok(model) = runtime.block_on(load_model(path, config)) {
        then(model.as_ref());
        runtime.block_on(model.close()).expect("closing does not fail");
    }
}

/// Continues a text and answers a conversation; `None` for a short one.
pub fn run(model: &dyn TextModel, messages: Option<&[Message]>) {
    let config = GenerateConfig::new().max_tokens(4);
    let short = [Message::user(PROMPT)];
    for stream in [model.generate(PROMPT, config.clone()), model.chat(messages.unwrap_or(&short), config)] {
        block_on_stream(stream).for_each(drop);
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Ends the process at a panic, as libFuzzer's own hook does, except at those the library answers with an error.
fn report_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let caught = info.location().is_some_and(|at| CAUGHT.iter().any(|name| at.file().contains(name)));
            if !caught {
                eprintln!("{info}");
                process::abort();
            }
        }));
    });
}
