//! GGUF files, [specified](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) by ggml.
//! Everything in them is checked before it is used: counts and lengths against the bytes that are
//! left, shapes for overflow, offsets for alignment and range.

mod hf_keys;
mod metadata;
mod reader;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::DType;

pub use hf_keys::config;
pub use metadata::{GgufArray, GgufMetadata};
use reader::GgufReader;

use super::{Encoding, StoredTensor, weight_file::WeightFile};
use crate::{Error, Result, kernels::quant::GgmlType};

/// The most bytes that metadata and the places of tensors may take, as in safetensors. Those of models take a few dozen
/// megabytes; in memory it may be several times as much.
const MAX_HEADER: usize = 100 << 20;

/// An open GGUF file, or the several that a model was split into.
pub struct GgufFile {
    pub path: PathBuf,
    pub metadata: GgufMetadata,
    parts: Vec<WeightFile>,
    tensors: BTreeMap<String, GgufEntry>,
}

struct GgufEntry {
    part: usize,
    /// Outermost dimension first, as candle counts.
    shape: Vec<usize>,
    ggml_type: u32,
    start: usize,
}

impl GgufFile {
    /// Opens a file and, if it is the first of several (`…-00001-of-00003.gguf`), the others.
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

    /// Where they are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(WeightFile::path)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn get(&self, name: &str) -> Result<StoredTensor<'_>> {
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| Error::model(&self.path, format!("tensor {name} is missing")))?;
        let file = &self.parts[entry.part];
        let path = file.path();
        let bad = |reason: String| Error::model(path, reason);
        let encoding = encoding(entry.ggml_type)
            .ok_or_else(|| bad(format!("tensor {name} has type {}, which is not supported", entry.ggml_type)))?;
        let (block, block_bytes) = match encoding {
            Encoding::Dense(dtype) => (1, dtype.size_in_bytes()),
            Encoding::Ggml(kind) => (kind.block_len(), kind.block_bytes()),
        };
        let row = entry.shape.last().copied().unwrap_or(1);
        if row % block != 0 {
            return Err(bad(format!("tensor {name}: rows of {row} do not divide into blocks of {block}")));
        }
        let len = elements(&entry.shape).map(|n| n / block).and_then(|blocks| blocks.checked_mul(block_bytes));
        let end = len.and_then(|len| entry.start.checked_add(len)).filter(|end| *end <= file.len());
        let end = end.ok_or_else(|| bad(format!("tensor {name} {:?} ends beyond the file", entry.shape)))?;
        Ok(StoredTensor { path, encoding, shape: &entry.shape, bytes: file.bytes(entry.start..end) })
    }

    /// The values of a tensor that is not quantized.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.get(name)?.values(name)
    }

    /// Bits per weight and weights per scale: those of the kind of quantization the file says it has, else of the
    /// type most of the weights have; zeros if that is not a quantized one.
    pub fn quantization(&self) -> (u32, u32) {
        let mut elements_by_type = BTreeMap::<u32, usize>::new();
        for entry in self.tensors.values() {
            let count = elements_by_type.entry(entry.ggml_type).or_default();
            *count = count.saturating_add(elements(&entry.shape).unwrap_or(0));
        }
        let most = || elements_by_type.iter().max_by_key(|(_, elements)| **elements).map(|(ggml_type, _)| *ggml_type);
        let named = self.metadata.opt_u32("general.file_type").ok().flatten().and_then(type_of_file);
        let kind = named.or_else(most).and_then(GgmlType::from_gguf_id);
        kind.map_or((0, 0), |kind| (kind.bits(), kind.group() as u32))
    }
}

/// The type that gives a kind of file its name.
fn type_of_file(file_type: u32) -> Option<u32> {
    Some(match file_type {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 3,
        7 => 8,
        8 => 6,
        9 => 7,
        10 | 21 => 10,
        11..=13 => 11,
        14 | 15 => 12,
        16 | 17 => 13,
        18 => 14,
        25 => 20,
        30 => 23,
        32 => 30,
        38 => 39,
        _ => return None,
    })
}

fn read_part(path: &Path, part: usize) -> Result<(WeightFile, GgufMetadata, BTreeMap<String, GgufEntry>)> {
    let file = WeightFile::open(path)?;
    let bad = |reason: String| Error::model(path, reason);
    let mut reader = GgufReader::new(file.file(), file.len().min(MAX_HEADER));
    let (tensor_count, metadata_count) = reader.header().map_err(bad)?;
    let metadata = GgufMetadata::read(path, &mut reader, metadata_count).map_err(bad)?;
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
        let start = entry.start.checked_add(data).filter(|start| *start <= file.len());
        entry.start = start.ok_or_else(|| bad(format!("tensor {name} starts beyond the file")))?;
    }
    Ok((file, metadata, tensors))
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

fn read_entry(reader: &mut GgufReader<'_>, part: usize, alignment: usize) -> Result<(String, GgufEntry), String> {
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
    Ok((name, GgufEntry { part, shape, ggml_type, start }))
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim))
}

fn encoding(ggml_type: u32) -> Option<Encoding> {
    match ggml_type {
        0 => Some(Encoding::Dense(DType::F32)),
        1 => Some(Encoding::Dense(DType::F16)),
        30 => Some(Encoding::Dense(DType::BF16)),
        number => GgmlType::from_gguf_id(number).map(Encoding::Ggml),
    }
}
