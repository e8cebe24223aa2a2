//! Where tensors come from: files, checked and read piece by piece.

pub mod gguf;
mod hf_config;
mod mlx_matrix;
mod python_json;
mod quantized_modules;
mod safetensors;
mod stored_matrix;
mod unsupported_formats;
mod weight_file;
mod weight_matrix;

use std::path::{Path, PathBuf};

use candle_core::DType;

use gguf::GgufFile;
pub use hf_config::Config;
use quantized_modules::QuantizedModule;
pub use safetensors::{INDEX_FILE, RawTensor, SafetensorsDir, WeightFiles};
pub use stored_matrix::StoredMatrix;
use stored_matrix::{RowMatrix, TensorBytes, to_f32};
use weight_file::FileBytes;
pub use weight_matrix::{ComputeTarget, WeightMatrix};

pub use unsupported_formats::no_tokenizer;

use crate::{Error, Result, files, kernels::quant::GgmlType};

/// A model's files: its configuration under Hugging Face's names, and its tensors.
pub struct Checkpoint {
    /// The directory or file the model was loaded from.
    pub path: PathBuf,
    pub config: Config,
    pub store: TensorStore,
}

/// The file format of a [`Checkpoint`].
pub enum TensorStore {
    Safetensors(SafetensorsDir),
    Gguf(GgufFile),
}

/// A tensor in a file.
pub struct StoredTensor<'a> {
    pub path: &'a Path,
    pub encoding: Encoding,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    pub bytes: FileBytes<'a>,
}

/// How the values of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Dense(DType),
    /// In blocks along the last dimension.
    Ggml(GgmlType),
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let config = path.join("config.json");
            if !files::exists(&config)
                && let Some(error) = unsupported_formats::no_config(path)
            {
                return Err(error);
            }
            let (config, dir) = (Config::read(&config)?, SafetensorsDir::open(path)?);
            unsupported_formats::check(&config, &dir)?;
            Ok(Self { path: path.to_owned(), config, store: TensorStore::Safetensors(dir) })
        } else {
            let file = GgufFile::open(path)?;
            let config = gguf::config(&file)?;
            Ok(Self { path: path.to_owned(), config, store: TensorStore::Gguf(file) })
        }
    }

    /// Bits per weight and weights per scale; zeros if the weights are not quantized.
    pub fn quantization(&self) -> (u32, u32) {
        match &self.store {
            TensorStore::Safetensors(_) => self.config.quantization(),
            TensorStore::Gguf(file) => file.quantization(),
        }
    }

    /// Whether there is a weight of this name, in whichever form.
    pub fn contains(&self, name: &str) -> bool {
        self.has_tensor(name) || packed_names(name).any(|name| self.has_tensor(&name))
    }

    fn has_tensor(&self, name: &str) -> bool {
        match &self.store {
            TensorStore::Safetensors(dir) => dir.contains(name),
            TensorStore::Gguf(file) => file.contains(name),
        }
    }

    /// The names of all tensors of a directory.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let dir = match &self.store {
            TensorStore::Safetensors(dir) => Some(dir),
            TensorStore::Gguf(_) => None,
        };
        dir.into_iter().flat_map(SafetensorsDir::names)
    }

    /// Whether two tensors hold the same in the same form.
    pub fn is_same(&self, one: &str, other: &str) -> Result<bool> {
        const PART: usize = 1 << 20;
        let (one, other) = (self.tensor(one)?, self.tensor(other)?);
        if one.shape != other.shape || one.encoding != other.encoding {
            return Ok(false);
        }
        let len = one.bytes.len();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for start in (0..len).step_by(PART) {
            let part = start..len.min(start + PART);
            one.bytes.read_part(part.clone(), &mut ours)?;
            other.bytes.read_part(part, &mut theirs)?;
            if ours != theirs {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A tensor, whatever its shape.
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>> {
        match &self.store {
            TensorStore::Safetensors(dir) => dir.get(name),
            TensorStore::Gguf(file) => file.get(name),
        }
    }

    /// A tensor of `shape` as a matrix whose rows are along its last dimension.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<StoredMatrix<'_>> {
        let columns = shape.last().copied().unwrap_or(1);
        // Sizes from a configuration may be absurd: no tensor was compared with them yet.
        let rows = shape[..shape.len().saturating_sub(1)].iter().fold(1, |rows: usize, n| rows.saturating_mul(*n));
        if let TensorStore::Safetensors(_) = self.store
            && let Some(module) = name.strip_suffix(".weight")
            && let Some(matrix) = QuantizedModule::new(self, module, rows, columns).read()?
        {
            return Ok(matrix);
        }
        let tensor = self.tensor(name)?;
        // Some converters leave out dimensions of 1.
        let significant = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
        if significant(tensor.shape) != significant(shape) {
            return Err(shape_error(name, &tensor, shape));
        }
        tensor.check_values(name)?;
        if let Encoding::Ggml(kind) = tensor.encoding
            && !columns.is_multiple_of(kind.block_len())
        {
            // The tensor has whole blocks along another dimension.
            return Err(shape_error(name, &tensor, shape));
        }
        let (encoding, bytes) = (tensor.encoding, TensorBytes::File(tensor.bytes));
        Ok(StoredMatrix::Rows(RowMatrix { rows, columns, encoding, bytes, precise: false }))
    }

    /// The values of a tensor of `len` elements.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape.iter().product::<usize>() != len {
            return Err(shape_error(name, &tensor, &[len]));
        }
        tensor.values(name)
    }
}

impl StoredTensor<'_> {
    /// All values in order, if they are not quantized.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.check_values(name)?;
        match self.encoding {
            Encoding::Dense(dtype) => to_f32(&self.bytes.read()?, dtype),
            Encoding::Ggml(kind) => {
                Err(Error::model(self.path, format!("tensor {name} has type {kind:?}; a vector must not")))
            }
        }
    }

    /// Refuses types that only quantized modules have.
    fn check_values(&self, name: &str) -> Result<()> {
        match self.encoding {
            Encoding::Ggml(_) | Encoding::Dense(DType::F32 | DType::F16 | DType::BF16) => Ok(()),
            Encoding::Dense(dtype) => {
                let reason = format!("tensor {name} has dtype {dtype:?}; F32, F16 and BF16 are supported");
                Err(Error::model(self.path, reason))
            }
        }
    }
}

/// The tensors that a weight of this name may be in if it is quantized.
fn packed_names(name: &str) -> impl Iterator<Item = String> {
    let module = name.strip_suffix(".weight").into_iter();
    module.flat_map(|module| [".qweight", "_blocks"].map(|form| format!("{module}{form}")))
}

fn shape_error(name: &str, tensor: &StoredTensor<'_>, expected: &[usize]) -> Error {
    let reason = format!("tensor {name} has the shape {:?}; the configuration asks for {expected:?}", tensor.shape);
    Error::model(tensor.path, reason)
}
