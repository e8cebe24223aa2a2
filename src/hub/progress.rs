//! Reports from the thread of a download to the task that waits for it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::Result;

/// The least time between two progress reports.
pub const REPORT: Duration = Duration::from_millis(50);

/// The progress of one file's download.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadProgress {
    /// The file's name in the repository.
    pub file: String,
    /// Bytes on disk, including bytes of an earlier, interrupted download.
    pub downloaded_bytes: u64,
    /// The file's size in bytes.
    pub total_bytes: u64,
}

/// A message from a download thread.
pub enum DownloadEvent {
    Progress(DownloadProgress),
    Done(Result<PathBuf>),
}

pub type EventSender = mpsc::UnboundedSender<DownloadEvent>;

/// Forwards the progress of one file, throttled: a read brings only a few kilobytes.
pub struct ProgressReporter {
    step: DownloadProgress,
    reported: Instant,
    events: EventSender,
}

impl ProgressReporter {
    pub fn new(file: &str, events: &EventSender) -> Self {
        let step = DownloadProgress { file: file.into(), downloaded_bytes: 0, total_bytes: 0 };
        Self { step, reported: Instant::now(), events: events.clone() }
    }

    /// Sets the file's size.
    pub fn set_total(&mut self, bytes: u64) {
        self.step.total_bytes = bytes;
    }

    /// Whether the waiting future was dropped.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Notes how many bytes are on disk, and reports them if the last report is old enough.
    pub fn downloaded(&mut self, bytes: u64) {
        // A stalled download stays silent: the waiting task times out on silence.
        if bytes != self.step.downloaded_bytes && self.reported.elapsed() >= REPORT {
            self.step.downloaded_bytes = bytes;
            self.report();
        }
        self.step.downloaded_bytes = bytes;
    }

    /// Reports at once.
    pub fn report(&mut self) {
        self.reported = Instant::now();
        // The receiver is gone if the future was dropped.
        let _ = self.events.send(DownloadEvent::Progress(self.step.clone()));
    }
}
