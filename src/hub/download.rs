//! Storing a file in the cache, with resume and a lock between processes.
//!
//! hf-hub has its own downloader, but it builds paths from unchecked response headers.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
};

use hf_hub::{
    CacheRepo,
    api::sync::{ApiError, Metadata},
};
use ureq::http::StatusCode;

use super::{
    progress::{ProgressReporter, REPORT},
    range_client::RangeClient,
    repository::is_name,
};

/// The download of one file into the cache.
pub struct Download {
    url: String,
    size: u64,
    /// The cached content, named after its ETag.
    blob: PathBuf,
    /// The partial content.
    part: PathBuf,
    lock: PathBuf,
    /// The file's place in the snapshot, and the target of the link there.
    pointer: PathBuf,
    link: String,
}

impl Download {
    /// The download of `file` into the snapshot of `commit`. Refuses headers that are no plain file names.
    pub fn new(
        cache: &CacheRepo,
        (url, file): (String, &str),
        commit: Option<&str>,
        metadata: &Metadata,
    ) -> Result<Self, ApiError> {
        let etag = metadata.etag().trim_start_matches("W/");
        let commit = commit.unwrap_or(metadata.commit_hash());
        for (header, name) in [("etag", etag), ("x-repo-commit", commit)] {
            if !is_name(name) {
                return Err(ApiError::InvalidHeader(header));
            }
        }
        Ok(Self {
            url,
            size: metadata.size() as u64,
            blob: cache.blob_path(etag),
            part: cache.blob_path(&format!("{etag}.part")),
            lock: cache.blob_path(&format!("{etag}.lock")),
            pointer: cache.pointer_path(commit).join(file),
            link: format!("{}blobs/{etag}", "../".repeat(file.split('/').count() + 1)),
        })
    }

    /// Fetches the file unless the cache has it, after waiting for other processes that fetch the same content. `None`
    /// if the waiting future was dropped.
    pub fn run(&self, client: &RangeClient, reporter: &mut ProgressReporter) -> Result<Option<PathBuf>, ApiError> {
        reporter.set_total(self.size);
        for folder in [&self.blob, &self.pointer].into_iter().flat_map(|path| path.parent()) {
            fs::create_dir_all(folder)?;
        }
        let Some(_lock) = self.lock(reporter)? else { return Ok(None) };
        if !fs::metadata(&self.blob).is_ok_and(|blob| blob.len() == self.size) {
            self.fetch(client, reporter)?;
            fs::rename(&self.part, &self.blob)?;
        }
        if !self.pointer.exists() {
            // A dangling link.
            let _ = fs::remove_file(&self.pointer);
            self.link()?;
        }
        reporter.downloaded(self.size);
        reporter.report();
        Ok(Some(self.pointer.clone()))
    }

    /// Locks the content. The lock ends with the returned file, and so with the process.
    fn lock(&self, reporter: &mut ProgressReporter) -> io::Result<Option<File>> {
        only_file(&self.lock)?;
        let lock = File::create(&self.lock)?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) if reporter.is_cancelled() => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(REPORT),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if let Ok(part) = fs::metadata(&self.part) {
                reporter.downloaded(part.len());
            }
        }
    }

    /// Appends the missing bytes to `part`.
    fn fetch(&self, client: &RangeClient, reporter: &mut ProgressReporter) -> Result<(), ApiError> {
        only_file(&self.part)?;
        let mut part = File::options().append(true).create(true).open(&self.part)?;
        let mut len = part.metadata()?.len();
        if len > self.size {
            part.set_len(0)?;
            len = 0;
        }
        if len == self.size {
            return Ok(());
        }
        let response = client.get(&self.url, len)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // The server ignores ranges and sends the whole file.
            part.set_len(0)?;
            len = 0;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 << 10];
        while len < self.size {
            let read = match body.read(&mut buffer)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                read => read,
            };
            len += read as u64;
            if len > self.size {
                break;
            }
            part.write_all(&buffer[..read])?;
            reporter.downloaded(len);
        }
        if len > self.size || body.read(&mut buffer[..1])? > 0 {
            fs::remove_file(&self.part)?;
            return Err(io::Error::other(format!("it has more than the {} bytes that were named", self.size)).into());
        }
        Ok(())
    }

    #[cfg(unix)]
    fn link(&self) -> io::Result<()> {
        std::os::unix::fs::symlink(&self.link, &self.pointer)
    }

    #[cfg(windows)]
    fn link(&self) -> io::Result<()> {
        // Symbolic links need a privilege on Windows.
        let link = self.link.replace('/', "\\");
        std::os::windows::fs::symlink_file(link, &self.pointer).or_else(|_| fs::rename(&self.blob, &self.pointer))
    }
}

/// Refuses to write into pipes and devices: opening a pipe would block.
fn only_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(io::Error::other(format!("{} is in the cache and is no regular file", path.display())))
        }
        _ => Ok(()),
    }
}
