//! The `*.safetensors` files of a directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::DType;
use safetensors::{Dtype, tensor::Metadata};

use super::{
    Encoding, StoredTensor,
    hf_config::Config,
    unsupported_formats,
    weight_file::{FileBytes, WeightFile},
};
use crate::{Error, Result, files};

/// Where a directory tells which file holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The file of a model that is in one.
const SINGLE_FILE: &str = "model.safetensors";
/// The most bytes of a header, as everywhere.
const MAX_HEADER: u64 = 100_000_000;

/// The open `*.safetensors` files of a directory.
pub struct SafetensorsDir {
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Tensors that an index puts into missing files, each with its file.
    absent: BTreeMap<String, String>,
}

/// A tensor as the file has it.
pub struct RawTensor<'a> {
    pub path: &'a Path,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: FileBytes<'a>,
}

struct TensorEntry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl SafetensorsDir {
    pub fn open(dir: &Path) -> Result<Self> {
        let WeightFiles { paths, absent } = WeightFiles::find(dir)?;
        Self::of(paths, absent)
    }

    /// Opens one file as if it were the only one of its directory.
    pub fn of_file(path: PathBuf) -> Result<Self> {
        Self::of(vec![path], BTreeMap::new())
    }

    fn of(paths: Vec<PathBuf>, absent: BTreeMap<String, String>) -> Result<Self> {
        let mut this = Self { files: Vec::new(), tensors: BTreeMap::new(), absent };
        for path in paths {
            this.add(&path)?;
        }
        Ok(this)
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        self.files[0].path()
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names of all tensors with their types and shapes.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.dtype, &*entry.shape))
    }

    /// Reads a file's header. Of a tensor that is in several files the last one counts, as in transformers.
    fn add(&mut self, path: &Path) -> Result<()> {
        let file = WeightFile::open(path)?;
        let (data, metadata) = read_header(&file)?;
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            let entry =
                TensorEntry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), start, end };
            if let Some(before) = self.tensors.insert(name.clone(), entry) {
                let before = self.files[before.file].path().display();
                tracing::warn!(name, %before, counts = %path.display(), "a tensor is in two files");
            }
        }
        self.files.push(file);
        Ok(())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor that an index names and no file holds, and the file that it should be in.
    pub fn first_absent(&self) -> Option<(&str, &str)> {
        let mut absent = self.absent.iter().filter(|(name, _)| !self.contains(name));
        absent.next().map(|(name, file)| (name.as_str(), file.as_str()))
    }

    /// The tensor of this name in whichever type, or an error naming the file it is not in.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(match self.absent.get(name) {
                Some(file) => absent_file(&self.path().with_file_name(file), name),
                None => Error::model(self.path(), format!("tensor {name} is missing")),
            });
        };
        let file = &self.files[entry.file];
        let bytes = file.bytes(entry.start..entry.end);
        Ok(RawTensor { path: file.path(), dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Result<StoredTensor<'_>> {
        let RawTensor { path, dtype, shape, bytes } = self.raw(name)?;
        let dtype = match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::U32 => DType::U32,
            Dtype::I32 => DType::I32,
            Dtype::U8 => DType::U8,
            Dtype::F8_E4M3 => DType::F8E4M3,
            other => {
                let reason = format!("tensor {name} has dtype {other:?}; F32, F16 and BF16 are supported");
                return Err(Error::model(path, reason));
            }
        };
        Ok(StoredTensor { path, encoding: Encoding::Dense(dtype), shape, bytes })
    }
}

/// Where the first tensor begins, and all of them, checked against each other and the file's length.
fn read_header(file: &WeightFile) -> Result<(usize, Metadata)> {
    const LEN: usize = size_of::<u64>();
    let bad = |why: &str| Error::model(file.path(), format!("is not a safetensors file: {why}"));
    if file.len() < LEN {
        return Err(bad(&format!("it has {} bytes", file.len())));
    }
    let len = u64::from_le_bytes(file.bytes(0..LEN).read()?.try_into().unwrap_or_default());
    if len > MAX_HEADER || len > (file.len() - LEN) as u64 {
        return Err(bad(&format!("its header has {len} bytes, and the file {}", file.len())));
    }
    let data = LEN + len as usize;
    let header: Metadata = serde_json::from_slice(&file.bytes(LEN..data).read()?)
        .map_err(|error| Error::model_because(file.path(), "is not a safetensors file", error))?;
    match header.data_len().checked_add(data) {
        Some(end) if end == file.len() => Ok((data, header)),
        _ => {
            Err(bad(&format!("it has {} bytes, and {} of tensors from byte {data} on", file.len(), header.data_len())))
        }
    }
}

/// The files that hold a directory's weights.
pub struct WeightFiles {
    pub paths: Vec<PathBuf>,
    /// Tensors that an index puts into missing files, each with its file.
    pub absent: BTreeMap<String, String>,
}

impl WeightFiles {
    /// `model.safetensors`, unless an index names it with others; else those of the index that are there; else all that
    /// there are. Where an index is incomplete, what else there is comes first: of two tensors the last one counts.
    pub fn find(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX_FILE);
        let indexed = read_index(&index)?;
        let single = dir.join(SINGLE_FILE);
        // transformers does not look at an index beside it either.
        if files::exists(&single) && !matches!(&indexed, Some(Ok(map)) if map.values().any(|file| file == SINGLE_FILE))
        {
            if indexed.is_some() {
                tracing::warn!(path = %index.display(), "an index beside {SINGLE_FILE} is not heeded");
            }
            return Ok(Self { paths: vec![single], absent: BTreeMap::new() });
        }
        let indexed = indexed.transpose()?.unwrap_or_default();
        let is_there: BTreeMap<&str, bool> =
            indexed.values().map(|file| (file.as_str(), files::exists(&dir.join(file)))).collect();
        let complete = !indexed.is_empty() && is_there.values().all(|there| *there);
        let others = if complete { Vec::new() } else { all_weights(dir)? };
        let others = others.into_iter().filter(|name| !is_there.contains_key(name.as_str()));
        let named = is_there.iter().filter(|(_, there)| **there).map(|(name, _)| (*name).to_owned());
        let paths: Vec<_> = others.chain(named).map(|name| dir.join(name)).collect();
        let absent: BTreeMap<_, _> = indexed.iter().filter(|(_, file)| !is_there[file.as_str()]).collect();
        match (paths.is_empty(), absent.first_key_value()) {
            (true, Some((name, file))) => Err(absent_file(&dir.join(file), name)),
            (true, None) => Err(unsupported_formats::no_weights(dir)),
            _ => Ok(Self {
                paths,
                absent: absent.into_iter().map(|(name, file)| (name.clone(), file.clone())).collect(),
            }),
        }
    }
}

fn absent_file(path: &Path, tensor: &str) -> Error {
    Error::model(path, format!("there is no such file; {INDEX_FILE} says that it holds tensor {tensor}"))
}

/// The names of all files of weights in a directory, in order.
fn all_weights(dir: &Path) -> Result<Vec<String>> {
    let entries = dir.read_dir().map_err(|error| Error::model_because(dir, "cannot be listed", error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| is_weights(name)).collect();
    names.sort();
    Ok(names)
}

/// Whether a file holds weights of its own: not an adapter, not a second copy in Mistral's layout.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with("adapter") && !name.starts_with("consolidated")
}

/// The file that an index names for each tensor, if there is an index.
///
/// # Errors
/// If it is no regular file or names others than those of its directory. What else is wrong with it matters only if it
/// is needed.
fn read_index(path: &Path) -> Result<Option<Result<BTreeMap<String, String>>>> {
    if !files::exists(path) {
        return Ok(None);
    }
    files::open(path)?;
    let map = weight_map(path);
    let mut names = map.iter().flatten().map(|(_, file)| file);
    match names.find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        Some(name) => Err(Error::model(path, format!("weight_map: {name:?} is not a file of this directory"))),
        None => Ok(Some(map)),
    }
}

fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let index = Config::read(path)?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| index.bad("weight_map", "not an object"))?;
    if map.is_empty() {
        return Err(index.bad("weight_map", "names no file"));
    }
    let entry = |(tensor, file): (&String, &serde_json::Value)| Some((tensor.clone(), file.as_str()?.to_owned()));
    let entries: Option<_> = map.iter().map(entry).collect();
    entries.ok_or_else(|| index.bad("weight_map", "not an object of strings"))
}
