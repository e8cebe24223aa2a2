//! Memory-mapped files.
#![allow(unsafe_code)]

use std::{
    fs::File,
    ops::{Deref, Range},
    path::Path,
};

use memmap2::Mmap;

use crate::{Error, Result};

/// Maps a file read-only.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Error::model_because(path, "cannot be opened", error))?;
    // SAFETY: the mapping is only read, as bytes, for which any content is valid. That nobody cuts
    // the file short or writes to it while it is mapped is asked of the user in the crate's docs.
    unsafe { Mmap::map(&file) }.map_err(|error| Error::model_because(path, "cannot be mapped", error))
}

/// Bytes of a mapped file.
#[derive(Clone, Copy)]
pub struct Mapped<'a> {
    map: &'a Mmap,
    start: usize,
    bytes: &'a [u8],
}

impl<'a> Mapped<'a> {
    /// These of a mapping; panics if they are not there.
    pub fn new(map: &'a Mmap, range: Range<usize>) -> Self {
        Self { map, start: range.start, bytes: &map[range] }
    }

    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Gives the memory of a part back, but for pages that it shares with what is around it. It can be read again: from
    /// the file.
    pub fn release(self, part: Range<usize>) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let (start, end) = ((self.start + part.start).next_multiple_of(PAGE), self.start + part.end);
            // Where the file ends a page does, too.
            let end = if end == self.map.len() { end } else { end / PAGE * PAGE };
            if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
                // SAFETY: a mapping of a file that is never written to has nothing to lose.
                let advised =
                    unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
                if let Err(error) = advised {
                    tracing::debug!(%error, "the pages of a mapped file stay");
                }
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Deref for Mapped<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}
