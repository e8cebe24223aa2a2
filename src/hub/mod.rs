//! Downloading models from the Hugging Face Hub.
//!
//! Files land in the cache folder that the Hub's other tools use too, so that nothing is fetched
//! twice. Proxies are taken from the usual `*_PROXY` variables by the HTTP client.

mod download;

use std::{
    fmt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError, ApiRepo},
};
use tokio::sync::{mpsc, oneshot};

use self::download::{Client, Download, Reporter};
use crate::{Error, Result, weights::WeightFiles};

const ENDPOINT: &str = "https://huggingface.co";
/// How long the Hub may take to show that it is there at all.
const PROBE: Duration = Duration::from_secs(5);
/// How long finding and reaching the server may take, each.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a download may stand still.
const STALL: Duration = Duration::from_secs(30);
/// Progress is reported no more often than this.
const REPORT: Duration = Duration::from_millis(50);
/// What a model needs besides its weights, as far as the repository has it.
const SIDE_FILES: [&str; 12] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    INDEX,
];
const INDEX: &str = "model.safetensors.index.json";

/// How far the download of one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The file's name in the repository.
    pub file: String,
    /// Bytes that are on disk, those of an earlier, interrupted download included.
    pub downloaded_bytes: u64,
    /// The file's size.
    pub total_bytes: u64,
}

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
    /// The token that `hf auth login` left next to the cache folder is used, if there is one. No
    /// `HF_` variables are read; see [`from_env`](Self::from_env).
    pub fn new() -> Self {
        Self { endpoint: ENDPOINT.into(), cache_dir: None, token: None }
    }

    /// As [`new`](Self::new), with the settings in `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN`.
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

    /// Asks this server, such as a mirror, instead of the public one.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into().trim_end_matches('/').to_owned();
        self
    }

    /// Keeps files in this folder.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Shows this access token, for repositories that are not public.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Fetches one file and returns its path in the cache. A file that is there already is
    /// returned as it is, without any network.
    ///
    /// `progress` runs in the task that polls the future, so it should be quick.
    ///
    /// # Errors
    /// - [`Error::InvalidConfig`] if `repo` or `file` is not a valid name, or there is no home
    ///   folder to keep the cache in.
    /// - [`Error::Remote`] if the Hub is out of reach (noticed within seconds), does not have the
    ///   file, refuses it, or sends nothing for half a minute.
    /// - [`Error::Internal`] if the file cannot be written.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting. The thread behind it goes on until the file is in
    /// the cache or the download has failed; a later call then finds it there or resumes it.
    pub async fn file(
        &self,
        repo: &str,
        file: &str,
        progress: impl FnMut(Progress) + Send + 'static,
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

    /// Fetches a model: its configuration, tokenizer, chat template and `safetensors` weights.
    /// Returns the folder that [`load_model`](crate::load_model) takes.
    ///
    /// The Hub is asked for the newest version; of that, only files missing in the cache are
    /// fetched. If the Hub is out of reach, a complete older download serves as well. GGUF files
    /// are fetched one by one with [`file`](Self::file).
    ///
    /// `progress` runs in the task that polls the future, so it should be quick.
    ///
    /// # Errors
    /// As [`file`](Self::file); also [`Error::Remote`] if the repository has no `safetensors`.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting. The thread behind it finishes the file it is at, or
    /// fails, and starts no other; a later call goes on from there.
    pub async fn model(&self, repo: &str, progress: impl FnMut(Progress) + Send + 'static) -> Result<PathBuf> {
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
            // What is returned stays where it is if the program changes its folder.
            Some(folder) => std::path::absolute(folder).ok(),
            None => std::env::home_dir().map(|home| home.join(".cache").join("huggingface").join("hub")),
        };
        folder.map(Cache::new).ok_or_else(|| Error::config("cache_dir", "there is no home folder; set a folder"))
    }

    fn job(&self, cache: Cache, repo: &str) -> Result<Job> {
        let token = self.token.clone().or_else(|| cache.token());
        let builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(self.endpoint.clone());
        let api = builder.with_token(token.clone()).build().map_err(|error| self.remote(error.to_string()))?;
        Ok(Job { api, client: Client::new(token), cache, endpoint: self.endpoint.clone(), repo: repo.into() })
    }

    fn remote(&self, reason: impl Into<String>) -> Error {
        Error::Remote { endpoint: self.endpoint.clone(), reason: reason.into() }
    }

    /// Finds out whether the Hub answers at all: what is asked of it before a download has no time limits, and would
    /// hang for minutes where packets are swallowed.
    async fn probe(&self) -> Result<()> {
        let (sender, answer) = oneshot::channel();
        let endpoint = self.endpoint.clone();
        // Looking up a name can block longer than any limit set here, so a thread waits for it.
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
        progress: impl FnMut(Progress) + Send + 'static,
        work: impl FnOnce(Events) -> Result<PathBuf> + Send + 'static,
    ) -> Result<PathBuf> {
        let (events, receiver) = mpsc::unbounded_channel();
        spawn(move || {
            let result = work(events.clone());
            // Nobody listens any more if the future was dropped.
            let _ = events.send(Event::Done(result));
        })?;
        self.watch(receiver, progress).await
    }

    /// Waits for the end of a download, or for it to stand still.
    async fn watch(
        &self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut progress: impl FnMut(Progress),
    ) -> Result<PathBuf> {
        loop {
            match tokio::time::timeout(STALL, events.recv()).await {
                Ok(Some(Event::Progress(step))) => progress(step),
                Ok(Some(Event::Done(result))) => return result,
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

/// What a download thread tells.
enum Event {
    Progress(Progress),
    Done(Result<PathBuf>),
}

type Events = mpsc::UnboundedSender<Event>;

/// What a download thread works with.
struct Job {
    api: Api,
    client: Client,
    cache: Cache,
    endpoint: String,
    repo: String,
}

impl Job {
    fn file(&self, file: &str, events: &Events) -> Result<PathBuf> {
        self.fetch(&self.api.model(self.repo.clone()), file, None, events)
    }

    /// Fetches all files at one commit, and only then makes it the cache's newest: the snapshot
    /// is whole even if the repository changes meanwhile.
    fn model(&self, events: &Events) -> Result<PathBuf> {
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

    /// Downloads a file into the snapshot of `commit`; the server says which one if that is open.
    fn fetch(&self, remote: &ApiRepo, file: &str, commit: Option<&str>, events: &Events) -> Result<PathBuf> {
        check_file(file)?;
        let cached = self.cache.model(self.repo.clone());
        let fetched = || {
            let url = remote.url(file);
            let metadata = self.api.metadata(&url)?;
            let download = Download::new(&cached, (url, file), commit, &metadata)?;
            let path = download.run(&self.client, &mut Reporter::new(file, events))?;
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
            // The connection's own errors come with a message rather than a number of the system.
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

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name("tokenflow-hub".into()).spawn(work).map(drop).map_err(|error| Error::Internal {
        reason: "no thread for the download".into(),
        source: Some(std::sync::Arc::new(error)),
    })
}

/// Any answer will do, be it a refusal.
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

/// The files of a repository that make up the model.
fn wanted(names: &[String]) -> Vec<&str> {
    let is_copy = |name: &str| name.starts_with("consolidated");
    let names = || names.iter().map(String::as_str);
    // Some repositories hold the weights twice, the second time in their author's own layout.
    let has_standard = names().any(|name| is_weights(name) && !is_copy(name));
    names().filter(|name| SIDE_FILES.contains(name) || is_weights(name) && !(has_standard && is_copy(name))).collect()
}

fn is_weights(name: &str) -> bool {
    !name.contains('/') && name.ends_with(".safetensors")
}

/// The folder of a model that was downloaded before, if it is complete.
fn cached_model(cache: &Cache, repo: &str) -> Option<PathBuf> {
    let config = cache.model(repo.into()).get("config.json")?;
    let folder = config.parent()?;
    let has_tokenizer = ["tokenizer.json", "merges.txt"].iter().any(|file| folder.join(file).exists());
    let complete = has_tokenizer && has_weights(folder);
    complete.then(|| folder.to_owned())
}

fn has_weights(folder: &Path) -> bool {
    WeightFiles::find(folder).is_ok_and(|files| files.absent.is_empty())
}

fn check_repo(repo: &str) -> Result<()> {
    if repo.split('/').count() <= 2 && repo.split('/').all(is_name) {
        return Ok(());
    }
    Err(Error::config("repo", format!("{repo:?} is not `owner/name` of letters, digits, `.`, `_` and `-`")))
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_allowed)
}

/// Refuses what would leave the repository, in the cache or on the server.
fn check_file(file: &str) -> Result<()> {
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    let is_allowed = |character: char| !character.is_control() && !r#"\:?#% "#.contains(character);
    if file.split('/').all(is_part) && file.chars().all(is_allowed) {
        return Ok(());
    }
    Err(Error::config("file", format!("{file:?} is not the relative path of a file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        for repo in ["gpt2", "owner/name", "Owner-1/na_me.v2"] {
            assert!(check_repo(repo).is_ok(), "{repo}");
        }
        for repo in ["", "/", "a/", "/a", "a/b/c", "..", "a/..", ".a", "a b", "a\\b", "a?b", "ä"] {
            assert!(check_repo(repo).is_err(), "{repo}");
        }
        for file in ["config.json", "a/b.gguf", ".gitattributes"] {
            assert!(check_file(file).is_ok(), "{file}");
        }
        for file in ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", "./a", "c:\\a", "a?b", "a#b", "a%2e", "a\nb"] {
            assert!(check_file(file).is_err(), "{file}");
        }
    }

    #[test]
    fn a_model_is_its_weights_and_what_explains_them() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let all =
            names(&["README.md", "config.json", "consolidated.safetensors", "model.safetensors", "onnx/a.safetensors"]);
        assert_eq!(wanted(&all), ["config.json", "model.safetensors"]);
        let only_copy = names(&["consolidated.safetensors"]);
        assert_eq!(wanted(&only_copy), ["consolidated.safetensors"]);
    }

    #[test]
    fn debug_hides_the_token() {
        assert!(!format!("{:?}", Hub::new().token("hf_abc")).contains("abc"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_that_stands_still_fails() {
        let (events, receiver) = mpsc::unbounded_channel();
        let start = tokio::time::Instant::now();
        let result = Hub::new().watch(receiver, |_| ()).await;
        assert!(matches!(result, Err(Error::Remote { .. })), "{result:?}");
        assert_eq!(start.elapsed(), STALL);
        drop(events);
    }
}
