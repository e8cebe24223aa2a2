//! The Hub's client against a server written here, which speaks as much of the protocol as it takes.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokenflow::{
    Error,
    hub::{DownloadProgress, Hub},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "owner/tiny";

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tokenflow-hub-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Files = BTreeMap<&'static str, Vec<u8>>;

/// A Hub with one repository. Stops when dropped.
struct Server {
    address: String,
    stopped: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stopped, requests) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (stop, log) = (stopped.clone(), requests.clone());
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // A client that leaves early is none of the server's business.
                let _ = answer(connection, &files, &log);
            }
        });
        Self { address, stopped, requests }
    }

    fn hub(&self, cache: &Folder) -> Hub {
        Hub::new().endpoint(format!("http://{}/", self.address)).cache_dir(&cache.0)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
    }
}

fn answer(connection: TcpStream, files: &Files, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut start = 0;
    let mut range_end = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            let (from, to) = range.split_once('-').unwrap();
            start = from.parse().unwrap();
            range_end = to.parse::<usize>().ok().map(|last| last + 1);
        }
    }
    log.lock().unwrap().push(request.clone());
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (head, body) = respond(path, files, start, range_end);
    let mut connection = connection;
    write!(connection, "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    if method != "HEAD" {
        connection.write_all(&body)?;
    }
    connection.shutdown(Shutdown::Write)
}

/// The status line with headers, and the body.
fn respond(path: &str, files: &Files, start: usize, end: Option<usize>) -> (String, Vec<u8>) {
    let resolve = |revision| path.strip_prefix(&format!("/{REPO}/resolve/{revision}/"));
    if path == format!("/api/models/{REPO}/revision/main") {
        let siblings: Vec<_> = files.keys().map(|name| format!(r#"{{"rfilename":"{name}"}}"#)).collect();
        return ("200 OK".into(), format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(",")).into());
    }
    if path.starts_with("/private/") || path.starts_with("/api/models/private/") {
        return ("401 Unauthorized".into(), Vec::new());
    }
    let Some((name, bytes)) = resolve("main").or(resolve(COMMIT)).and_then(|name| files.get_key_value(name)) else {
        return ("404 Not Found".into(), Vec::new());
    };
    let end = end.unwrap_or(bytes.len()).min(bytes.len());
    let last = end.saturating_sub(1);
    let (etag, commit) = match *name {
        // A hostile server.
        "etag.gguf" => ("../../../out".into(), COMMIT),
        "commit.gguf" => ("etag".into(), "../../../out"),
        name => (format!("etag-{}", name.replace(['.', '/'], "-")), COMMIT),
    };
    let head = format!(
        "206 Partial Content\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\nContent-Range: bytes {start}-{last}/{}",
        bytes.len()
    );
    (head, bytes[start..end].to_vec())
}

/// Bytes that differ from place to place.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index % 251) as u8).collect()
}

fn model_files() -> Files {
    let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    Files::from([
        ("README.md", b"# Tiny".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("chat_template.jinja", b"{{ messages }}".to_vec()),
        ("additional_chat_templates/tool_use.jinja", b"{{ tools }}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-00001-of-00002.safetensors", bytes(50_000)),
        ("model-00002-of-00002.safetensors", bytes(70_000)),
        ("onnx/model.safetensors", bytes(10)),
    ])
}

/// A callback that records progress.
fn recorder() -> (Arc<Mutex<Vec<DownloadProgress>>>, impl FnMut(DownloadProgress) + Send + 'static) {
    let steps = Arc::<Mutex<Vec<DownloadProgress>>>::default();
    let kept = steps.clone();
    (steps, move |step| kept.lock().unwrap().push(step))
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn reason(result: tokenflow::Result<PathBuf>) -> String {
    match result {
        Err(Error::Remote { reason, .. }) => reason,
        other => panic!("expected a remote error, got {other:?}"),
    }
}

#[tokio::test]
async fn file_is_fetched_once() {
    let cache = Folder::new();
    let server = Server::new(Files::from([("model.gguf", bytes(3_000_000))]));
    let hub = server.hub(&cache);
    let (steps, progress) = recorder();
    let path = hub.file(REPO, "model.gguf", progress).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(3_000_000));
    let steps = steps.lock().unwrap().clone();
    assert!(steps.is_sorted_by_key(|step| step.downloaded_bytes));
    let last = steps.last().unwrap();
    assert_eq!((last.file.as_str(), last.downloaded_bytes, last.total_bytes), ("model.gguf", 3_000_000, 3_000_000));

    drop(server);
    let again = hub.file(REPO, "model.gguf", |_| panic!("nothing to download")).await.unwrap();
    assert_eq!(again, path);
}

#[tokio::test]
async fn interrupted_download_resumes() {
    let cache = Folder::new();
    let server = Server::new(Files::from([("model.gguf", bytes(100_000))]));
    let blobs = cache.0.join("models--owner--tiny").join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("etag-model-gguf.part"), bytes(60_000)).unwrap();
    let path = server.hub(&cache).file(REPO, "model.gguf", |_| ()).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes(100_000));
}

#[tokio::test]
async fn complete_part_file_becomes_the_blob() {
    let cache = Folder::new();
    let server = Server::new(Files::from([("model.gguf", bytes(100_000))]));
    let blobs = cache.0.join("models--owner--tiny").join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("etag-model-gguf.part"), bytes(100_000)).unwrap();
    let path = server.hub(&cache).file(REPO, "model.gguf", |_| ()).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes(100_000));

    // A new snapshot reuses unchanged files.
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let before = server.requests().len();
    let path = server.hub(&cache).file(REPO, "model.gguf", |_| ()).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes(100_000));
    assert_eq!(server.requests().len() - before, 2, "the probe and the file's version");
}

#[tokio::test]
async fn hostile_server_cannot_write_outside_the_cache() {
    let folder = Folder::new();
    let cache = folder.0.join("cache");
    let server = Server::new(Files::from([("etag.gguf", bytes(10)), ("commit.gguf", bytes(10))]));
    let hub = server.hub(&folder).cache_dir(&cache);
    for (file, header) in [("etag.gguf", "etag"), ("commit.gguf", "x-repo-commit")] {
        let reason = reason(hub.file(REPO, file, |_| ()).await);
        assert!(reason.contains(file) && reason.contains(header), "{reason}");
    }
    assert!(!folder.0.join("out").exists() && !cache.exists(), "{:?}", names_in(&folder.0));
}

#[tokio::test]
async fn concurrent_callers_share_a_download() {
    let cache = Folder::new();
    let server = Server::new(Files::from([("model.gguf", bytes(500_000))]));
    let hub = server.hub(&cache);
    let (first, second) = tokio::join!(hub.file(REPO, "model.gguf", |_| ()), hub.file(REPO, "model.gguf", |_| ()));
    assert_eq!(first.unwrap(), second.as_ref().unwrap().clone());
    assert_eq!(fs::read(second.unwrap()).unwrap(), bytes(500_000));
}

#[tokio::test]
async fn refusal_names_the_file() {
    let cache = Folder::new();
    let server = Server::new(model_files());
    let hub = server.hub(&cache);
    let missing = reason(hub.file(REPO, "missing.gguf", |_| ()).await);
    assert!(missing.contains("owner/tiny/missing.gguf") && missing.contains("404"), "{missing}");
    let private = reason(hub.file("private/model", "config.json", |_| ()).await);
    assert!(private.contains("private/model/config.json") && private.contains("401"), "{private}");
    let private = reason(hub.model("private/model", |_| ()).await);
    assert!(private.contains("private/model") && private.contains("token"), "{private}");
}

#[tokio::test]
async fn closed_port_fails_at_once() {
    let cache = Folder::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hub = Hub::new().endpoint(format!("http://127.0.0.1:{port}")).cache_dir(&cache.0);
    let start = Instant::now();
    let result = hub.file(REPO, "config.json", |_| ()).await;
    assert!(matches!(&result, Err(Error::Remote { endpoint, .. }) if endpoint.contains("127.0.0.1")), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn silent_server_times_out() {
    let cache = Folder::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hub = Hub::new().endpoint(format!("http://{}", listener.local_addr().unwrap())).cache_dir(&cache.0);
    let start = Instant::now();
    let reason = reason(hub.model(REPO, |_| ()).await);
    assert!(reason.contains("reached"), "{reason}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test]
async fn invalid_names_never_reach_the_server() {
    let cache = Folder::new();
    let server = Server::new(model_files());
    let hub = server.hub(&cache);
    for repo in ["", "../tiny", "owner/..", "a/b/c", "owner/ti ny"] {
        let result = hub.model(repo, |_| ()).await;
        assert!(matches!(result, Err(Error::InvalidConfig { field: "repo", .. })), "{repo}: {result:?}");
    }
    for file in ["", "../config.json", "/config.json", "a/../../b"] {
        let result = hub.file(REPO, file, |_| ()).await;
        assert!(matches!(result, Err(Error::InvalidConfig { field: "file", .. })), "{file}: {result:?}");
    }
    assert_eq!(server.requests(), [""; 0]);
}

#[tokio::test]
async fn model_snapshot_is_complete_and_works_offline() {
    let cache = Folder::new();
    let server = Server::new(model_files());
    let hub = server.hub(&cache);
    let (steps, progress) = recorder();
    let folder = hub.model(REPO, progress).await.unwrap();
    let names = [
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names_in(&folder), names);
    assert_eq!(fs::read(folder.join(names[4])).unwrap(), bytes(70_000));
    assert_eq!(fs::read(folder.join("additional_chat_templates/tool_use.jinja")).unwrap(), b"{{ tools }}");
    let finished: Vec<_> =
        steps.lock().unwrap().iter().filter(|step| step.downloaded_bytes == step.total_bytes).cloned().collect();
    assert!(names[1..].iter().all(|name| finished.iter().any(|step| step.file == *name)), "{finished:?}");

    let before = server.requests().len();
    assert_eq!(hub.model(REPO, |_| panic!("nothing to download")).await.unwrap(), folder);
    assert_eq!(server.requests().len() - before, 2, "the probe and the list of files");

    drop(server);
    assert_eq!(hub.model(REPO, |_| ()).await.unwrap(), folder);
    assert_eq!(hub.file(REPO, "config.json", |_| ()).await.unwrap(), folder.join("config.json"));
    fs::remove_file(folder.join(names[4])).unwrap();
    reason(hub.model(REPO, |_| ()).await);
}

#[tokio::test]
async fn repository_without_weights_is_refused() {
    let cache = Folder::new();
    let server = Server::new(Files::from([("config.json", b"{}".to_vec()), ("model.gguf", bytes(10))]));
    let reason = reason(server.hub(&cache).model(REPO, |_| ()).await);
    assert!(reason.contains("safetensors"), "{reason}");
}
