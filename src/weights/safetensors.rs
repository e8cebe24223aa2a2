use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use candle_core::DType;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{
    Encoding, StoredTensor,
    config::Config,
    mmap::{self, Mapped},
};
use crate::{Error, Result};

/// Where a directory tells which file holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The memory-mapped `*.safetensors` files of a directory.
pub struct SafetensorsDir {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor as the file has it.
pub struct RawTensor<'a> {
    pub path: &'a Path,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: Mapped<'a>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl SafetensorsDir {
    pub fn open(dir: &Path) -> Result<Self> {
        Self::of(weight_files(dir)?)
    }

    /// That of one file only.
    pub fn of_file(path: PathBuf) -> Result<Self> {
        Self::of(vec![path])
    }

    fn of(paths: Vec<PathBuf>) -> Result<Self> {
        let mut this = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            this.add(path)?;
        }
        Ok(this)
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads a file's header, which the `safetensors` crate checks against the file's length.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let map = mmap::map(&path)?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| Error::model_because(&path, "is not a safetensors file", error))?;
        let data = header_len + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > map.len() {
                let reason = format!("tensor {name} ends at byte {end}, the file at {}", map.len());
                return Err(Error::model(path, reason));
            }
            let entry = Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), start, end };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(Error::model(path, format!("tensor {name} is in another file, too")));
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Gives the memory of a tensor back.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            Mapped::new(&self.files[entry.file].1, entry.start..entry.end).release(0..entry.end - entry.start);
        }
    }

    /// The tensor of this name in whichever type, or an error naming the file it is not in.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(Error::model(self.path(), format!("tensor {name} is missing")));
        };
        let (path, map) = &self.files[entry.file];
        Ok(RawTensor { path, dtype: entry.dtype, shape: &entry.shape, bytes: Mapped::new(map, entry.start..entry.end) })
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

/// The files that hold a directory's weights: those of the index, else `model.safetensors`, else
/// all that there are.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    if let Some(index) = Config::read_if_there(&dir.join(INDEX_FILE))? {
        return indexed_files(dir, &index);
    }
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let entries = dir.read_dir().map_err(|error| Error::model_because(dir, "cannot be listed", error))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| is_weights(p)).collect();
    files.sort();
    if files.is_empty() { Err(Error::model(dir, "holds no *.safetensors file")) } else { Ok(files) }
}

/// Whether a file holds weights of its own: not an adapter, not a second copy in Mistral's layout.
fn is_weights(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".safetensors") && !name.starts_with("adapter") && !name.starts_with("consolidated")
}

fn indexed_files(dir: &Path, index: &Config) -> Result<Vec<PathBuf>> {
    let names = index.get("weight_map").and_then(|map| map.as_object());
    let names = names.ok_or_else(|| index.bad("weight_map", "not an object"))?;
    let names: Option<BTreeSet<&str>> = names.values().map(|name| name.as_str()).collect();
    let names = names.ok_or_else(|| index.bad("weight_map", "not an object of strings"))?;
    if names.is_empty() {
        return Err(index.bad("weight_map", "names no file"));
    }
    for name in &names {
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(Error::model(index.path(), format!("weight_map: {name:?} is not a file of this directory")));
        }
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}
