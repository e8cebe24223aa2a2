//! Memory-mapped files.
#![allow(unsafe_code)]

use std::{fs::File, path::Path};

use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file read-only.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Error::model_because(path, "cannot be opened", error))?;
    // SAFETY: the mapping is only read, as bytes, for which any content is valid. That nobody cuts
    // the file short or writes to it while it is mapped is asked of the user in the crate's docs.
    unsafe { Mmap::map(&file) }.map_err(|error| Error::model_because(path, "cannot be mapped", error))
}
