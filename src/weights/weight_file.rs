//! Files of weights.

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{Error, Result, files};

/// An open file of weights. It is read piece by piece and not mapped, so that one that is cut short while it is read is
/// an error.
pub struct WeightFile {
    path: PathBuf,
    file: File,
    len: usize,
}

impl WeightFile {
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = files::open(path)?;
        let len = usize::try_from(len).map_err(|_| Error::model(path, format!("has {len} bytes")))?;
        Ok(Self { path: path.to_owned(), file, len })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes it had when it was opened.
    pub fn len(&self) -> usize {
        self.len
    }

    /// For reading from its start.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// These of its bytes; panics if there were none when it was opened.
    pub fn bytes(&self, range: Range<usize>) -> FileBytes<'_> {
        assert!(range.start <= range.end && range.end <= self.len, "bytes beyond the end of {}", self.path.display());
        FileBytes { file: self, start: range.start, len: range.len() }
    }
}

/// Bytes of a file, not read yet.
#[derive(Clone, Copy)]
pub struct FileBytes<'a> {
    file: &'a WeightFile,
    start: usize,
    len: usize,
}

impl FileBytes<'_> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads all.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_part(0..self.len, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads some into a buffer, which then has these and no more.
    pub fn read_part(&self, part: Range<usize>, buffer: &mut Vec<u8>) -> Result<()> {
        assert!(part.end <= self.len, "bytes beyond those of a tensor");
        let len = part.len();
        if let Some(more) = len.checked_sub(buffer.len()) {
            buffer.try_reserve_exact(more).map_err(|error| {
                Error::model_because(&self.file.path, format!("{len} bytes of it do not fit into memory"), error)
            })?;
        }
        buffer.resize(len, 0);
        let read = read_exact_at(&self.file.file, buffer, (self.start + part.start) as u64);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::model(
                &self.file.path,
                format!("was cut short while it was read: it had {} bytes", self.file.len),
            ),
            _ => Error::model_because(&self.file.path, "cannot be read", error),
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, start)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut start: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, start)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut buffer[read..];
                start += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn truncation_while_reading_is_an_error() {
        let path = std::env::temp_dir().join(format!("tokenflow-source-{}", std::process::id()));
        fs::write(&path, (0..100).collect::<Vec<u8>>()).unwrap();
        let file = WeightFile::open(&path).unwrap();
        let bytes = file.bytes(40..60);
        assert_eq!(bytes.read().unwrap(), (40..60).collect::<Vec<u8>>());
        let mut buffer = vec![0; 9];
        bytes.read_part(5..8, &mut buffer).unwrap();
        assert_eq!(buffer, [45, 46, 47]);
        File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
        let error = bytes.read().unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(error.contains("cut short") && error.contains("100 bytes"), "{error}");
    }
}
