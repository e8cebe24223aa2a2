//! The events between the two halves of a stream.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::Notify;

use super::{End, Token};
use crate::GenerateMetrics;

/// The tokens of one step.
#[derive(Debug)]
pub struct StreamEvent {
    pub tokens: Vec<Token>,
    pub metrics: GenerateMetrics,
}

/// The last event of a stream, which finds room in any case.
#[derive(Debug)]
pub struct FinalEvent {
    pub end: End,
    pub metrics: GenerateMetrics,
}

/// Backpressure: whether the sender waits for the reader, and how it learns that there is room again.
#[derive(Debug, Default)]
pub struct ReaderRoom {
    pub awaited: AtomicBool,
    pub made: Arc<Notify>,
}

/// Runs `act`, which wakes a reader. A panic of the reader's waker is the reader's own fault and must not end the work
/// of others. `None` after a panic.
pub fn waking<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}
