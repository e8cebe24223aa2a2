//! GGUF's primitives, read within the bounds of the file.

use std::{
    fs::File,
    io::{BufReader, Read},
};

/// Reads GGUF's little-endian primitives and never past the end. Errors say what is wrong; the
/// caller adds the file.
pub struct GgufReader<'a> {
    source: BufReader<&'a File>,
    position: usize,
    /// Bytes that may be read.
    len: usize,
}

impl<'a> GgufReader<'a> {
    /// The first `len` bytes of a file, which must be at its start.
    pub fn new(file: &'a File, len: usize) -> Self {
        Self { source: BufReader::with_capacity(1 << 16, file), position: 0, len }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    /// Reads magic and version; returns the counts of tensors and of metadata entries.
    pub fn header(&mut self) -> Result<(usize, usize), String> {
        if self.array().ok() != Some(*b"GGUF") {
            return Err("is not a GGUF file: it does not start with \"GGUF\"".into());
        }
        match self.u32()? {
            2 | 3 => {}
            version => return Err(format!("has GGUF version {version}; 2 and 3 are supported")),
        }
        let (tensors, metadata) = (self.usize()?, self.usize()?);
        // An entry of either kind takes more than 12 bytes.
        self.check_count("tensors", tensors, 12)?;
        self.check_count("metadata entries", metadata, 12)?;
        Ok((tensors, metadata))
    }

    /// Refuses counts that the rest of the file cannot hold, before anything is allocated.
    pub fn check_count(&self, what: &str, count: usize, min_bytes_each: usize) -> Result<(), String> {
        let left = self.len - self.position;
        if count.checked_mul(min_bytes_each).is_some_and(|needed| needed <= left) {
            Ok(())
        } else {
            Err(format!("claims {count} {what} with {left} bytes left"))
        }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        if self.len - self.position < N {
            return Err(format!("ends at byte {}, too early", self.len));
        }
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn usize(&mut self) -> Result<usize, String> {
        let value = u64::from_le_bytes(self.array()?);
        usize::try_from(value).map_err(|_| format!("has a size of {value}"))
    }

    pub fn string(&mut self) -> Result<String, String> {
        let len = self.usize()?;
        self.check_count("bytes of text", len, 1)?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        let read = self.source.read_exact(bytes);
        read.map_err(|error| format!("cannot be read at byte {}: {error}", self.position))?;
        self.position += bytes.len();
        Ok(())
    }
}
