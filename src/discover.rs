//! Discovery of models in a directory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, decoder,
    weights::{Config, INDEX_FILE, SafetensorsDir, WeightFiles, gguf::GgufFile},
};

/// A model that [`discover`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiscoveredModel {
    /// The directory or `.gguf` file, absolute.
    pub path: PathBuf,
    /// The architecture's name: "llama", "qwen3", …, even if it is not supported.
    pub model_type: String,
    /// Bits per weight of most weights; 0 if they are not quantized.
    pub quant_bits: u32,
    /// Weights that share a scale; 0 if they are not quantized.
    pub quant_group: u32,
    /// Files with weights.
    pub num_files: usize,
    /// "safetensors" or "gguf".
    pub format: String,
}

/// Finds models in `base_dir` and in its subdirectories, one level deep, in the order of their paths. In a cache of the
/// Hugging Face Hub (`~/.cache/huggingface/hub`) snapshots are searched, too. A GGUF model in several files is listed
/// once, with its first file.
///
/// Files that cannot be read or parsed are skipped, and no link is followed out of `base_dir`. Files are opened while
/// the iterator advances; weights are not read. A `base_dir` that cannot be listed gives no models and a [`tracing`]
/// warning; [`try_discover`] gives an error.
///
/// ```
/// for model in tokenflow::discover("models") {
///     println!("{} {} ({} bits)", model.path.display(), model.model_type, model.quant_bits);
/// }
/// ```
pub fn discover(base_dir: impl AsRef<Path>) -> impl Iterator<Item = DiscoveredModel> {
    let found = try_discover(base_dir).inspect_err(|error| {
        let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(%error, source, "no models can be found");
    });
    found.into_iter().flatten()
}

/// As [`discover`], with an error if `base_dir` cannot be listed.
///
/// # Errors
/// [`Error::InvalidModel`] with `base_dir` if it does not exist, is not a directory or cannot be read.
///
/// ```
/// assert!(tokenflow::try_discover("no/such/folder").is_err());
/// ```
pub fn try_discover(base_dir: impl AsRef<Path>) -> Result<impl Iterator<Item = DiscoveredModel>> {
    let base = base_dir.as_ref();
    let failed = |error| Error::model_because(base, "cannot be listed", error);
    base.read_dir().map_err(failed)?;
    let base = base.canonicalize().map_err(failed)?;
    Ok(places(&base).into_iter().flat_map(move |dir| models_in(&base, &dir)))
}

/// The directories to search.
fn places(base: &Path) -> Vec<PathBuf> {
    let mut places = vec![base.to_owned()];
    for dir in entries(base, base).into_iter().filter(|path| path.is_dir()) {
        let cached = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"));
        let snapshots = if cached { entries(base, &dir.join("snapshots")) } else { Vec::new() };
        places.push(dir);
        places.extend(snapshots.into_iter().filter(|path| path.is_dir()));
    }
    places
}

/// The entries of a directory that are inside `base` after following links, sorted.
fn entries(base: &Path, dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let stays = |path: &PathBuf| path.canonicalize().is_ok_and(|real| real.starts_with(base));
    let mut paths: Vec<_> = paths.filter(stays).collect();
    paths.sort();
    paths
}

/// The models of a directory: itself, and its GGUF files.
fn models_in(base: &Path, dir: &Path) -> Vec<DiscoveredModel> {
    let entries = entries(base, dir);
    let directory = directory_model(dir, &entries);
    let files = entries.iter().filter(|path| has_extension(path, "gguf")).filter_map(|path| gguf_model(base, path));
    directory.into_iter().chain(files).collect()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)) && path.is_file()
}

fn directory_model(dir: &Path, entries: &[PathBuf]) -> Option<DiscoveredModel> {
    let config = dir.join("config.json");
    if !entries.contains(&config) {
        return None;
    }
    let config = Config::read(&config).ok()?;
    let index = dir.join(INDEX_FILE);
    if index.exists() && !entries.contains(&index) {
        return None;
    }
    let files = WeightFiles::find(dir).ok()?;
    if !files.paths.iter().all(|file| file.is_file() && entries.contains(file)) {
        return None;
    }
    if !files.absent.is_empty() && SafetensorsDir::open(dir).ok()?.first_absent().is_some() {
        return None;
    }
    let (quant_bits, quant_group) = config.quantization();
    Some(DiscoveredModel {
        path: dir.to_owned(),
        model_type: decoder::model_type(&config).ok().flatten()?,
        quant_bits,
        quant_group,
        num_files: files.paths.len(),
        format: "safetensors".into(),
    })
}

fn gguf_model(base: &Path, path: &Path) -> Option<DiscoveredModel> {
    let file = GgufFile::open(path).ok()?;
    if !file.paths().all(|path| path.canonicalize().is_ok_and(|real| real.starts_with(base))) {
        return None;
    }
    let model_type = file.metadata.opt_str("general.architecture").ok().flatten()?.to_owned();
    let (quant_bits, quant_group) = file.quantization();
    Some(DiscoveredModel {
        path: path.to_owned(),
        model_type,
        quant_bits,
        quant_group,
        num_files: file.num_parts(),
        format: "gguf".into(),
    })
}
