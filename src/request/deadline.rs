//! Deadlines and cancellation of futures.

use std::time::{Duration, Instant};

use futures_timer::Delay;
use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// Sleeps until `time`, or for ever without one. Needs no runtime.
pub async fn reached(time: Option<Instant>) {
    match time.map(|time| time.saturating_duration_since(Instant::now())) {
        Some(Duration::ZERO) => {}
        Some(left) => Delay::new(left).await,
        None => std::future::pending().await,
    }
}

/// Runs `work` unless the request is cancelled, or its deadline passes, before `work` is done.
pub async fn unless_over<T>(
    cancellation: Option<&CancellationToken>,
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let cancelled = async {
        match cancellation {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = cancelled => Err(Error::Cancelled),
        () = reached(deadline) => Err(Error::DeadlineExceeded),
        done = work => done,
    }
}
