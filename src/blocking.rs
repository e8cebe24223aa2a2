//! Blocking work on threads of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use tokio::sync::oneshot;

use crate::{Error, Result};

/// Runs blocking work on a thread of its own, so that no Tokio worker waits for it. `name` is an imperative such as
/// `load`.
///
/// # Errors
/// The error of `work`, or [`Error::Internal`] with the message of a panic, of a callback for instance.
///
/// # Cancel safety
/// The work runs to its end if the future is dropped.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, done) = oneshot::channel();
    let who = format!("what was to {name}");
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(work));
        // The receiver may be gone.
        drop(sender.send(done.unwrap_or_else(|panic| Err(Error::panicked(&who, panic.as_ref())))));
    };
    thread::Builder::new()
        .name(format!("tokenflow {name}"))
        .spawn(work)
        .map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
    done.await.map_err(|_| Error::internal(format!("a thread that was to {name} ended without a word")))?
}
