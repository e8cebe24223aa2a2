//! Optional fields whose values are invalid.

use crate::Result;

/// The value of an optional field, or the default with a warning if it is invalid: a model works without it.
pub fn ignore_invalid<T: Default>(found: Result<T>) -> T {
    found.unwrap_or_else(|error| {
        tracing::warn!(%error, "an optional field is ignored");
        T::default()
    })
}
