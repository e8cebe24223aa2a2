//! Untrusted files: only regular ones are opened, and side files are read up to a limit. Also names for files that are
//! being written.

use std::{
    fs::{self, File, FileType, Metadata, OpenOptions},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Error, Result};

/// Limit of a JSON file, in bytes. The largest indices and configurations of models have about 15 MB.
pub const MAX_JSON: u64 = 32 << 20;
/// Limit of a tokenizer or a vocabulary, in bytes. Tokenizers of models have up to 40 MB.
pub const MAX_VOCABULARY: u64 = 128 << 20;
/// Limit of a chat template, in bytes. Templates of models have up to 100 kB.
pub const MAX_TEMPLATE: u64 = 1 << 20;

/// Opens a regular file for reading. Returns its length in bytes, too. Never blocks, on the other end of a pipe for
/// instance.
///
/// # Errors
/// [`Error::InvalidModel`] with the path, and the kind of file if it is not a regular one.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |error| Error::model_because(path, "cannot be read", error);
    // Opening a device can have effects, so the kind is checked before.
    check(path, &fs::metadata(path).map_err(failed)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(failed)?;
    // The path may have changed since the check.
    let metadata = file.metadata().map_err(failed)?;
    check(path, &metadata)?;
    Ok((file, metadata.len()))
}

/// Reads a regular file of at most `max` bytes.
///
/// # Errors
/// [`Error::InvalidModel`] with the path, as for [`open`], and for a longer file.
pub fn read_limited(path: &Path, max: u64) -> Result<Vec<u8>> {
    let too_long = |len: &str| Err(Error::model(path, format!("has {len} bytes; {max} are the most of such a file")));
    let (file, len) = open(path)?;
    if len > max {
        return too_long(&len.to_string());
    }
    let mut bytes = Vec::new();
    let enough = bytes.try_reserve_exact(usize::try_from(len).unwrap_or(usize::MAX));
    enough.map_err(|error| Error::model_because(path, format!("{len} bytes do not fit into memory"), error))?;
    let read = file.take(max.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| Error::model_because(path, "cannot be read", error))?;
    if bytes.len() as u64 > max { too_long(&format!("more than {max}")) } else { Ok(bytes) }
}

/// As [`read_limited`], for a UTF-8 text.
pub fn read_text(path: &Path, max: u64) -> Result<String> {
    String::from_utf8(read_limited(path, max)?).map_err(|error| Error::model_because(path, "is not UTF-8", error))
}

/// Whether something exists at `path`. A dangling link does not count, a link that leads to itself does: opening it
/// gives a better error.
pub fn exists(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

/// A name beside `path` for a file or directory while it is written, to be renamed to `path` once it is whole. Each
/// call gives another name, so writers of the same path do not meet.
pub fn temp_sibling(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

fn check(path: &Path, metadata: &Metadata) -> Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(Error::model(path, format!("is {}, not a regular file", kind(metadata.file_type())))),
    }
}

fn kind(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a directory" } else { "something else" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_beyond_the_limit_is_refused() {
        let path = std::env::temp_dir().join(format!("tokenflow-files-{}", std::process::id()));
        fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read_limited(&path, 10).unwrap(), [7; 10]);
        let error = read_limited(&path, 9).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(error.ends_with("has 10 bytes; 9 are the most of such a file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_directories_are_named() {
        let error = |path: &str| open(Path::new(path)).unwrap_err().to_string();
        assert_eq!(error("/dev/zero"), "/dev/zero: is a device, not a regular file");
        assert_eq!(error("/"), "/: is a directory, not a regular file");
    }
}
