//! The trait of adapters.

use std::path::Path;

use async_trait::async_trait;

use crate::Result;

/// An adapter that a model trains.
#[async_trait]
pub trait Adapter: Send + Sync {
    /// The number of trainable parameters.
    fn total_params(&self) -> usize;

    /// Writes the current parameters as a directory of [PEFT](https://github.com/huggingface/peft):
    /// `adapter_config.json` and `adapter_model.safetensors`. Files are replaced atomically.
    ///
    /// Blocks until the files are on disk: tens of milliseconds, more for large adapters and slow disks.
    /// [`save_async`](Self::save_async) does not block.
    ///
    /// # Errors
    /// [`Error::InvalidModel`](crate::Error::InvalidModel) with the directory that cannot be written.
    fn save(&self, path: &Path) -> Result<()>;

    /// Like [`save`](Self::save) on a blocking thread. The provided method runs on the caller's thread.
    ///
    /// # Errors
    /// The errors of [`save`](Self::save).
    ///
    /// # Cancel safety
    /// The files are written even if the future is dropped.
    async fn save_async(&self, path: &Path) -> Result<()> {
        self.save(path)
    }
}
