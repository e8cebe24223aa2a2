use std::time::{Duration, Instant};

/// When a request is given up.
///
/// ```
/// use std::time::{Duration, Instant};
/// use tokenflow::GenerateConfig;
/// let patient = GenerateConfig::new().deadline(Duration::from_secs(30)); // from each call on
/// let strict = GenerateConfig::new().deadline(Instant::now() + Duration::from_secs(30));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// That long after the call.
    After(Duration),
    /// At that time.
    At(Instant),
}

impl Deadline {
    /// The time it means for a request of `call`; `None` if that is beyond all times.
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
