//! [`Hub`] and its builder.

use std::{
    fmt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hf_hub::{Cache, api::sync::ApiBuilder};
use tokio::sync::{mpsc, oneshot};

use super::{
    CONNECT, STALL,
    job::DownloadJob,
    progress::{DownloadEvent, DownloadProgress, EventSender},
    range_client::RangeClient,
    repository::{cached_model, check_file, check_repo},
};
use crate::{Error, Result};

const ENDPOINT: &str = "https://huggingface.co";
/// Time limit for the first answer of the Hub.
const PROBE: Duration = Duration::from_secs(5);

/// The Hugging Face Hub, or a server that speaks its protocol.
///
/// # Examples
/// ```no_run
/// # async fn run() -> tokenflow::Result<()> {
/// use tokenflow::{LoadConfig, hub::Hub, load_model};
/// let folder = Hub::new().model("HuggingFaceTB/SmolLM2-135M-Instruct", |_| ()).await?;
/// let model = load_model(folder, LoadConfig::new()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache_dir: Option<PathBuf>,
    token: Option<String>,
}

impl Hub {
    /// The public Hub and the standard cache folder, `.cache/huggingface/hub` in the user's home.
    ///
    /// The token that `hf auth login` stored next to the cache folder is used if there is one. No `HF_` variables are
    /// read; see [`from_env`](Self::from_env).
    pub fn new() -> Self {
        Self { endpoint: ENDPOINT.into(), cache_dir: None, token: None }
    }

    /// Like [`new`](Self::new), with the settings in `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN`.
    pub fn from_env() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name| set(name).and_then(|value| value.into_string().ok());
        let mut hub = Self::new();
        hub.cache_dir = set("HF_HOME").map(|home| Path::new(&home).join("hub"));
        hub.token = text("HF_TOKEN");
        match text("HF_ENDPOINT") {
            Some(endpoint) => hub.endpoint(endpoint),
            None => hub,
        }
    }

    /// Sets the server, a mirror for example.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into().trim_end_matches('/').to_owned();
        self
    }

    /// Sets the cache folder.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Sets the access token, for repositories that are not public.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Downloads one file and returns its path in the cache. A cached file is returned without any network traffic.
    ///
    /// `progress` runs in the task that polls the future, so it should be quick.
    ///
    /// # Errors
    /// - [`Error::InvalidConfig`] if `repo` or `file` is not a valid name, or there is no home folder for the cache.
    /// - [`Error::Remote`] if the Hub is out of reach (noticed within five seconds), does not have the file, refuses
    ///   it, or sends nothing for 30 seconds.
    /// - [`Error::Internal`] if the file cannot be written.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting. Its thread goes on until the file is in the cache or the download has
    /// failed; a later call finds the file there or resumes the download.
    pub async fn file(
        &self,
        repo: &str,
        file: &str,
        progress: impl FnMut(DownloadProgress) + Send + 'static,
    ) -> Result<PathBuf> {
        check_repo(repo)?;
        check_file(file)?;
        let cache = self.cache()?;
        if let Some(path) = cache.model(repo.into()).get(file) {
            return Ok(path);
        }
        self.probe().await?;
        let (job, file) = (self.job(cache, repo)?, file.to_owned());
        self.run(progress, move |events| job.file(&file, &events)).await
    }

    /// Downloads a model: configuration, tokenizer, chat template and `safetensors` weights. Returns the folder that
    /// [`load_model`](crate::load_model) takes.
    ///
    /// The newest commit is used, and only files missing in the cache are fetched. If the Hub is out of reach, a
    /// complete older download is returned. GGUF files are downloaded one by one with [`file`](Self::file).
    ///
    /// `progress` runs in the task that polls the future, so it should be quick.
    ///
    /// # Errors
    /// As [`file`](Self::file); also [`Error::Remote`] if the repository has no `safetensors`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting. Its thread finishes or fails the current file and starts no other; a
    /// later call goes on from there.
    pub async fn model(&self, repo: &str, progress: impl FnMut(DownloadProgress) + Send + 'static) -> Result<PathBuf> {
        check_repo(repo)?;
        let cache = self.cache()?;
        if let Err(error) = self.probe().await {
            let folder = cached_model(&cache, repo).ok_or(error)?;
            tracing::warn!(repo, "the hub is out of reach; using the model as it was downloaded before");
            return Ok(folder);
        }
        let job = self.job(cache, repo)?;
        self.run(progress, move |events| job.model(&events)).await
    }

    fn cache(&self) -> Result<Cache> {
        let folder = match &self.cache_dir {
            // Returned paths stay valid if the program changes its working directory.
            Some(folder) => std::path::absolute(folder).ok(),
            None => std::env::home_dir().map(|home| home.join(".cache").join("huggingface").join("hub")),
        };
        folder.map(Cache::new).ok_or_else(|| Error::config("cache_dir", "there is no home folder; set a folder"))
    }

    fn job(&self, cache: Cache, repo: &str) -> Result<DownloadJob> {
        let token = self.token.clone().or_else(|| cache.token());
        let builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(self.endpoint.clone());
        let api = builder.with_token(token.clone()).build().map_err(|error| self.remote(error.to_string()))?;
        Ok(DownloadJob {
            api,
            client: RangeClient::new(token),
            cache,
            endpoint: self.endpoint.clone(),
            repo: repo.into(),
        })
    }

    fn remote(&self, reason: impl Into<String>) -> Error {
        Error::Remote { endpoint: self.endpoint.clone(), reason: reason.into() }
    }

    /// Checks that the Hub answers at all: hf-hub's metadata requests have no timeouts and would hang for minutes
    /// behind a firewall that drops packets.
    async fn probe(&self) -> Result<()> {
        let (sender, answer) = oneshot::channel();
        let endpoint = self.endpoint.clone();
        // Resolving a name can block beyond any timeout, so a thread waits for it.
        spawn(move || drop(sender.send(reach(&endpoint))))?;
        match tokio::time::timeout(PROBE, answer).await {
            Ok(Ok(result)) => result.map_err(|error| self.remote(format!("cannot be reached: {error}"))),
            Ok(Err(_)) => Err(Error::internal("the thread that looks for the hub died")),
            Err(_) => Err(self.remote(format!("cannot be reached: no answer within {PROBE:?}"))),
        }
    }

    /// Runs `work` in a thread of its own and reports its progress.
    async fn run(
        &self,
        progress: impl FnMut(DownloadProgress) + Send + 'static,
        work: impl FnOnce(EventSender) -> Result<PathBuf> + Send + 'static,
    ) -> Result<PathBuf> {
        let (events, receiver) = mpsc::unbounded_channel();
        spawn(move || {
            let result = work(events.clone());
            // The receiver is gone if the future was dropped.
            let _ = events.send(DownloadEvent::Done(result));
        })?;
        self.watch(receiver, progress).await
    }

    /// Waits until a download ends, or stalls.
    async fn watch(
        &self,
        mut events: mpsc::UnboundedReceiver<DownloadEvent>,
        mut progress: impl FnMut(DownloadProgress),
    ) -> Result<PathBuf> {
        loop {
            match tokio::time::timeout(STALL, events.recv()).await {
                Ok(Some(DownloadEvent::Progress(step))) => progress(step),
                Ok(Some(DownloadEvent::Done(result))) => return result,
                Ok(None) => return Err(Error::internal("the download thread died")),
                Err(_) => return Err(self.remote(format!("sent nothing for {STALL:?}"))),
            }
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token stays out of logs.
        let token = self.token.as_ref().map(|_| "hidden");
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &token)
            .finish()
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name("tokenflow-hub".into()).spawn(work).map(drop).map_err(|error| Error::Internal {
        reason: "no thread for the download".into(),
        source: Some(std::sync::Arc::new(error)),
    })
}

/// Sends one request. Every HTTP status counts as an answer.
fn reach(endpoint: &str) -> Result<(), ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_global(Some(PROBE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .build()
        .into();
    agent.head(endpoint).call().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_token() {
        assert!(!format!("{:?}", Hub::new().token("hf_abc")).contains("abc"));
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_download_fails() {
        let (events, receiver) = mpsc::unbounded_channel();
        let start = tokio::time::Instant::now();
        let result = Hub::new().watch(receiver, |_| ()).await;
        assert!(matches!(result, Err(Error::Remote { .. })), "{result:?}");
        assert_eq!(start.elapsed(), STALL);
        drop(events);
    }
}
