//! Deadlines of requests.

use std::time::{Duration, Instant};

/// When a request ends with [`Error::DeadlineExceeded`](crate::Error::DeadlineExceeded).
///
/// ```
/// use std::time::{Duration, Instant};
/// use tokenflow::GenerateConfig;
/// let patient = GenerateConfig::new().deadline(Duration::from_secs(30)); // from each call on
/// let strict = GenerateConfig::new().deadline(Instant::now() + Duration::from_secs(30));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// A time after the call.
    After(Duration),
    /// A point in time.
    At(Instant),
}

impl Deadline {
    /// The point in time for a request that was called at `call`; `None` if it cannot be represented.
    pub(crate) fn at(self, call: Instant) -> Option<Instant> {
        match self {
            Self::After(duration) => call.checked_add(duration),
            Self::At(time) => Some(time),
        }
    }
}

impl From<Duration> for Deadline {
    fn from(duration: Duration) -> Self {
        Self::After(duration)
    }
}

impl From<Instant> for Deadline {
    fn from(time: Instant) -> Self {
        Self::At(time)
    }
}

impl From<tokio::time::Instant> for Deadline {
    fn from(time: tokio::time::Instant) -> Self {
        Self::At(time.into_std())
    }
}
