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

/// Gives the memory of bytes of a mapping back. They can be read again: from the file.
pub fn release(map: &Mmap, bytes: &[u8]) {
    #[cfg(unix)]
    {
        const PAGE: usize = 4096;
        let start = (bytes.as_ptr() as usize - map.as_ptr() as usize).next_multiple_of(PAGE);
        let end = bytes.as_ptr() as usize - map.as_ptr() as usize + bytes.len();
        if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
            // SAFETY: a mapping of a file that is never written to has nothing to lose.
            let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
            if let Err(error) = advised {
                tracing::debug!(%error, "the pages of a mapped file stay");
            }
        }
    }
    #[cfg(not(unix))]
    let _ = (map, bytes);
}
