//! GGUF files, [specified](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) by ggml.
//! Everything in them is checked before it is used: counts and lengths against the bytes that are
//! left, shapes for overflow, offsets for alignment and range.

mod config;
mod metadata;
mod reader;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, quantized::GgmlDType};
use memmap2::Mmap;

pub use config::config;
pub use metadata::{Array, Metadata};
use reader::Reader;

use super::{Encoding, StoredTensor, mmap};
use crate::{Error, Result};

/// A memory-mapped GGUF file, or the several that a model was split into.
pub struct GgufFile {
    pub path: PathBuf,
    pub metadata: Metadata,
    parts: Vec<Part>,
    tensors: BTreeMap<String, Entry>,
}

struct Part {
    path: PathBuf,
    map: Mmap,
}

struct Entry {
    part: usize,
    /// Outermost dimension first, as candle counts.
    shape: Vec<usize>,
    ggml_type: u32,
    start: usize,
}

impl GgufFile {
    /// Opens a file and, if it is the first of several (`…-00001-of-00003.gguf`), those that belong to it.
    pub fn open(path: &Path) -> Result<Self> {
        let (part, metadata, tensors) = read_part(path, 0)?;
        let count = metadata.opt_usize("split.count")?.unwrap_or(1);
        let mut this = Self { path: path.to_owned(), metadata, parts: vec![part], tensors };
        if count > 1 {
            for number in 1..count {
                let path = sibling(path, number, count).map_err(|reason| Error::model(path, reason))?;
                let (part, _, tensors) = read_part(&path, number)?;
                this.parts.push(part);
                for (name, entry) in tensors {
                    if this.tensors.insert(name.clone(), entry).is_some() {
                        return Err(Error::model(path, format!("tensor {name} is in another part, too")));
                    }
                }
            }
        }
        Ok(this)
    }

    /// How many files there are.
    pub fn num_parts(&self) -> usize {
        self.parts.len()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn get(&self, name: &str) -> Result<StoredTensor<'_>> {
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| Error::model(&self.path, format!("tensor {name} is missing")))?;
        let Part { path, map } = &self.parts[entry.part];
        let bad = |reason: String| Error::model(path, reason);
        let dtype = ggml_dtype(entry.ggml_type)
            .ok_or_else(|| bad(format!("tensor {name} has type {}, which is not supported", entry.ggml_type)))?;
        let (row, block) = (entry.shape.last().copied().unwrap_or(1), dtype.block_size());
        if row % block != 0 {
            return Err(bad(format!("tensor {name}: rows of {row} do not divide into blocks of {block}")));
        }
        let len = elements(&entry.shape).map(|n| n / block).and_then(|blocks| blocks.checked_mul(dtype.type_size()));
        let end = len.and_then(|len| entry.start.checked_add(len)).filter(|end| *end <= map.len());
        let end = end.ok_or_else(|| bad(format!("tensor {name} {:?} ends beyond the file", entry.shape)))?;
        let encoding = match dtype {
            GgmlDType::F32 => Encoding::Dense(DType::F32),
            GgmlDType::F16 => Encoding::Dense(DType::F16),
            GgmlDType::BF16 => Encoding::Dense(DType::BF16),
            dtype => Encoding::Ggml(dtype),
        };
        Ok(StoredTensor { path, encoding, shape: &entry.shape, bytes: &map[entry.start..end] })
    }

    /// Bits per weight and weights per block of the type most of the weights have; zeros if that
    /// is not a quantised one.
    pub fn quantization(&self) -> (u32, u32) {
        let mut elements_by_type = BTreeMap::<u32, usize>::new();
        for entry in self.tensors.values() {
            *elements_by_type.entry(entry.ggml_type).or_default() += elements(&entry.shape).unwrap_or(0);
        }
        let most = elements_by_type.into_iter().max_by_key(|(_, elements)| *elements);
        most.and_then(|(ggml_type, _)| bits_and_group(ggml_type)).unwrap_or((0, 0))
    }
}

fn read_part(path: &Path, part: usize) -> Result<(Part, Metadata, BTreeMap<String, Entry>)> {
    let map = mmap::map(path)?;
    let bad = |reason: String| Error::model(path, reason);
    let mut reader = Reader::new(&map);
    let (tensor_count, metadata_count) = reader.header().map_err(bad)?;
    let metadata = Metadata::read(path, &mut reader, metadata_count).map_err(bad)?;
    let number = metadata.opt_usize("split.no")?.unwrap_or(0);
    if number != part {
        return Err(bad(format!("split.no = {number}: this is part {} of a model, not {}", number + 1, part + 1)));
    }
    let alignment = metadata.opt_usize("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() {
        return Err(bad(format!("general.alignment = {alignment}: not a power of two")));
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let (name, entry) = read_entry(&mut reader, part, alignment).map_err(bad)?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(bad(format!("tensor {name} is there twice")));
        }
    }
    let data = reader.position().next_multiple_of(alignment);
    for (name, entry) in &mut tensors {
        let start = entry.start.checked_add(data).filter(|start| *start <= map.len());
        entry.start = start.ok_or_else(|| bad(format!("tensor {name} starts beyond the file")))?;
    }
    Ok((Part { path: path.to_owned(), map }, metadata, tensors))
}

/// The path of another part, counted from 0, of the model that begins with `first`.
fn sibling(first: &Path, part: usize, count: usize) -> Result<PathBuf, String> {
    let end = |part: usize| format!("-{:05}-of-{count:05}.gguf", part + 1);
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name.strip_suffix(&end(0)) {
        Some(stem) => Ok(first.with_file_name(format!("{stem}{}", end(part)))),
        None => Err(format!("split.count = {count}: the name of the first part does not end in {}", end(0))),
    }
}

fn read_entry(reader: &mut Reader<'_>, part: usize, alignment: usize) -> Result<(String, Entry), String> {
    let name = reader.string()?;
    let dims = reader.u32()?;
    if !(1..=4).contains(&dims) {
        return Err(format!("tensor {name} has {dims} dimensions; 1 to 4 are allowed"));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.push(reader.usize()?);
    }
    shape.reverse();
    if elements(&shape).is_none_or(|n| n == 0) {
        return Err(format!("tensor {name} has the shape {shape:?}"));
    }
    let ggml_type = reader.u32()?;
    let start = reader.usize()?;
    if !start.is_multiple_of(alignment) {
        return Err(format!("tensor {name} starts at {start}, which is not aligned to {alignment}"));
    }
    Ok((name, Entry { part, shape, ggml_type, start }))
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim))
}

fn ggml_dtype(ggml_type: u32) -> Option<GgmlDType> {
    Some(match ggml_type {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

fn bits_and_group(ggml_type: u32) -> Option<(u32, u32)> {
    Some(match ggml_type {
        2 | 3 => (4, 32),
        6 | 7 => (5, 32),
        8 => (8, 32),
        10 => (2, 16),
        11 => (3, 16),
        12 => (4, 32),
        13 => (5, 32),
        14 => (6, 16),
        _ => return None,
    })
}
