//! Optional fields that make no sense.

use crate::Result;

/// The value of an optional field, or none where what is there makes no sense: a model works without it.
pub fn ignore_invalid<T: Default>(found: Result<T>) -> T {
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "an optional field is ignored");
        T::default()
    })
}
