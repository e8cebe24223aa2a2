use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use tokio::sync::oneshot;

use crate::{Error, Result};

/// Does work that takes long on a thread of its own: no Tokio worker should wait for it. `name` says what it is. A
/// panic, of a callback say, is an error that has its message.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, done) = oneshot::channel();
    let who = format!("what was to {name}");
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(work));
        // Nobody may wait any more.
        drop(sender.send(done.unwrap_or_else(|panic| Err(Error::panicked(&who, panic.as_ref())))));
    };
    thread::Builder::new()
        .name(format!("tokenflow {name}"))
        .spawn(work)
        .map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
    done.await.map_err(|_| Error::internal(format!("a thread that was to {name} ended without a word")))?
}
