//! The state of a training between steps.

use super::{adamw::AdamW, checkpoint::CheckpointState};
use crate::AdapterFile;

/// The state of a training between two steps.
pub struct RunState {
    pub file: AdapterFile,
    pub adamw: AdamW,
    pub checkpoint: CheckpointState,
    /// The state of the last checkpoint that was written.
    pub written: CheckpointState,
    pub has_diverged: bool,
    /// The latest adapter with a checked loss, and its step: what remains if training diverges.
    last_good: (AdapterFile, usize),
}

impl RunState {
    pub fn new(file: AdapterFile, adamw: AdamW, checkpoint: CheckpointState) -> Self {
        let (written, last_good) = (checkpoint.clone(), (file.clone(), checkpoint.step));
        Self { file, adamw, checkpoint, written, has_diverged: false, last_good }
    }

    /// The latest adapter with a checked loss.
    pub fn last_good(&self) -> &AdapterFile {
        &self.last_good.0
    }

    /// Whether the current adapter is the last good one.
    pub fn is_good(&self) -> bool {
        self.last_good.1 == self.checkpoint.step
    }

    /// Makes the current adapter the last good one.
    pub fn mark_good(&mut self) {
        if !self.is_good() {
            self.last_good.0.clone_from(&self.file);
            self.last_good.1 = self.checkpoint.step;
        }
    }

    /// Returns to the last good adapter, for good. Gives the steps taken, and the steps that remain.
    pub fn roll_back(&mut self) -> (usize, usize) {
        let (file, step) = &self.last_good;
        let taken = std::mem::replace(&mut self.checkpoint.step, *step);
        self.file.clone_from(file);
        self.has_diverged = true;
        (taken, *step)
    }
}
