use std::thread;

use tokio::sync::oneshot;

use crate::{Error, Result};

/// Does work that takes long on a thread of its own: no Tokio worker should wait for it. `name` says what it is.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, done) = oneshot::channel();
    // Nobody may wait any more.
    let work = move || drop(sender.send(work()));
    thread::Builder::new()
        .name(format!("tokenflow {name}"))
        .spawn(work)
        .map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
    done.await.map_err(|_| Error::internal(format!("a panic ended what was to {name}")))?
}
