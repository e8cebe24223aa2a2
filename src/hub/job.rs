//! The work of a download thread.

use std::path::PathBuf;

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiError, ApiRepo},
};

use super::{
    download::Download,
    progress::{EventSender, ProgressReporter},
    range_client::RangeClient,
    repository::{check_file, is_name, is_weights, wanted},
};
use crate::{Error, Result};

/// The state of a download thread.
pub struct DownloadJob {
    pub api: Api,
    pub client: RangeClient,
    pub cache: Cache,
    pub endpoint: String,
    pub repo: String,
}

impl DownloadJob {
    /// Downloads one file of the default branch.
    pub fn file(&self, file: &str, events: &EventSender) -> Result<PathBuf> {
        self.fetch(&self.api.model(self.repo.clone()), file, None, events)
    }

    /// Downloads all files of a model at one commit, and points the cache's `main` at that commit only afterwards: the
    /// snapshot is whole even if the repository changes meanwhile.
    pub fn model(&self, events: &EventSender) -> Result<PathBuf> {
        let info = self.api.model(self.repo.clone()).info().map_err(|error| self.error(None, error))?;
        if !is_name(&info.sha) {
            return Err(self.remote(format!("{}: {:?} is no commit", self.repo, info.sha)));
        }
        let names: Vec<_> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let files = wanted(&names);
        if !files.iter().any(|file| is_weights(file)) {
            return Err(self.remote(format!("{} has no safetensors files", self.repo)));
        }
        let commit = Repo::with_revision(self.repo.clone(), RepoType::Model, info.sha.clone());
        let newest = self.cache.model(self.repo.clone());
        let folder = newest.pointer_path(&info.sha);
        let remote = self.api.repo(commit);
        for file in files.into_iter().filter(|file| !folder.join(file).exists()) {
            if events.is_closed() {
                return Err(Error::Cancelled);
            }
            self.fetch(&remote, file, Some(&info.sha), events)?;
        }
        newest.create_ref(&info.sha).map_err(|error| self.error(None, error.into()))?;
        Ok(folder)
    }

    /// Downloads a file into the snapshot of `commit`, or of the commit that the server answers with.
    fn fetch(&self, remote: &ApiRepo, file: &str, commit: Option<&str>, events: &EventSender) -> Result<PathBuf> {
        check_file(file)?;
        let cached = self.cache.model(self.repo.clone());
        let fetched = || {
            let url = remote.url(file);
            let metadata = self.api.metadata(&url)?;
            let download = Download::new(&cached, (url, file), commit, &metadata)?;
            let path = download.run(&self.client, &mut ProgressReporter::new(file, events))?;
            if path.is_some() && commit.is_none() {
                cached.create_ref(metadata.commit_hash())?;
            }
            Ok(path)
        };
        fetched().map_err(|error| self.error(Some(file), error))?.ok_or(Error::Cancelled)
    }

    fn remote(&self, reason: String) -> Error {
        Error::Remote { endpoint: self.endpoint.clone(), reason }
    }

    /// Names the file, and tells errors of the server from errors of the local disk.
    fn error(&self, file: Option<&str>, error: ApiError) -> Error {
        let what = match file {
            Some(file) => format!("{}/{file}", self.repo),
            None => self.repo.clone(),
        };
        let status = match &error {
            ApiError::RequestError(error) => match **error {
                ureq::Error::StatusCode(status) => Some(status),
                _ => None,
            },
            _ => None,
        };
        match (status, error) {
            (Some(404), _) => self.remote(format!("{what} does not exist (HTTP 404)")),
            (Some(status @ (401 | 403)), _) => self.remote(format!(
                "{what} was refused (HTTP {status}): it does not exist, or needs a token that may read it"
            )),
            (Some(status), _) => self.remote(format!("{what}: HTTP {status}")),
            // Errors of the connection carry a message and no errno.
            (None, ApiError::IoError(error)) if error.raw_os_error().is_some() && !is_network(&error) => {
                let reason = format!("{what} cannot be kept in {}", self.cache.path().display());
                Error::Internal { reason, source: Some(std::sync::Arc::new(error)) }
            }
            (None, error) => self.remote(format!("{what}: {error}")),
        }
    }
}

fn is_network(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
            | NotConnected
            | BrokenPipe
            | TimedOut
            | WouldBlock
            | UnexpectedEof
    )
}
