//! Puts files of repositories into the cache, where the Hub's other tools look for them.
//!
//! hf-hub can do so, too, but makes paths of what a server answers without a look at it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use hf_hub::{
    CacheRepo,
    api::sync::{ApiError, Metadata},
};
use ureq::{
    Agent,
    http::{StatusCode, header},
};

use super::{CONNECT, Event, Events, Progress, REPORT, STALL, is_name};

/// A file on its way into the cache.
pub struct Download {
    url: String,
    size: u64,
    /// Where the cache keeps what the file contains.
    blob: PathBuf,
    /// What there is of it yet.
    part: PathBuf,
    lock: PathBuf,
    /// Its place in the snapshot, and the link that is there.
    pointer: PathBuf,
    link: String,
}

impl Download {
    /// What the server says of `file`, which belongs into the snapshot of `commit`.
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

    /// Fetches what the cache does not have. Waits for others that fetch it already: none if nobody waits for the file
    /// any more.
    pub fn run(&self, client: &Client, reporter: &mut Reporter) -> Result<Option<PathBuf>, ApiError> {
        reporter.step.total_bytes = self.size;
        for folder in [&self.blob, &self.pointer].into_iter().flat_map(|path| path.parent()) {
            fs::create_dir_all(folder)?;
        }
        let Some(_lock) = self.lock(reporter)? else { return Ok(None) };
        if !fs::metadata(&self.blob).is_ok_and(|blob| blob.len() == self.size) {
            self.fetch(client, reporter)?;
            fs::rename(&self.part, &self.blob)?;
        }
        if !self.pointer.exists() {
            // A link to what is not there any more.
            let _ = fs::remove_file(&self.pointer);
            self.link()?;
        }
        reporter.downloaded(self.size);
        reporter.report();
        Ok(Some(self.pointer.clone()))
    }

    /// A lock that goes with the file, so with the process as well.
    fn lock(&self, reporter: &mut Reporter) -> io::Result<Option<File>> {
        only_file(&self.lock)?;
        let lock = File::create(&self.lock)?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) if reporter.events.is_closed() => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(REPORT),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if let Ok(part) = fs::metadata(&self.part) {
                reporter.downloaded(part.len());
            }
        }
    }

    /// Fetches what is missing of `part`.
    fn fetch(&self, client: &Client, reporter: &mut Reporter) -> Result<(), ApiError> {
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
            // This server begins at the beginning, whatever it is asked for.
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
        // Not everybody may make links there.
        let link = self.link.replace('/', "\\");
        std::os::windows::fs::symlink_file(link, &self.pointer).or_else(|_| fs::rename(&self.blob, &self.pointer))
    }
}

/// Refuses to write into what is no file: a pipe for instance waits for who reads it.
fn only_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(io::Error::other(format!("{} is in the cache and is no regular file", path.display())))
        }
        _ => Ok(()),
    }
}

/// What asks a server for parts of files.
pub struct Client {
    agent: Agent,
    token: Option<String>,
}

impl Client {
    pub fn new(token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(STALL))
            // Parts of what is compressed are of no use.
            .accept_encoding("identity")
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost);
        Self { agent: config.build().into(), token }
    }

    /// A file from byte `start` on.
    fn get(&self, url: &str, start: u64) -> Result<ureq::http::Response<ureq::Body>, ApiError> {
        let mut request = self.agent.get(url).header(header::RANGE, format!("bytes={start}-"));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(request.call().map_err(Box::new)?)
    }
}

/// Passes progress on, some of it: a read brings no more than a few kilobytes.
pub struct Reporter {
    step: Progress,
    reported: Instant,
    events: Events,
}

impl Reporter {
    pub fn new(file: &str, events: &Events) -> Self {
        let step = Progress { file: file.into(), downloaded_bytes: 0, total_bytes: 0 };
        Self { step, reported: Instant::now(), events: events.clone() }
    }

    fn downloaded(&mut self, bytes: u64) {
        // One that stands still says nothing, by which it is known.
        if bytes != self.step.downloaded_bytes && self.reported.elapsed() >= REPORT {
            self.step.downloaded_bytes = bytes;
            self.report();
        }
        self.step.downloaded_bytes = bytes;
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        // Nobody listens any more if the future was dropped.
        let _ = self.events.send(Event::Progress(self.step.clone()));
    }
}
