//! Where tensors come from: files, mapped and checked.

mod config;
pub mod gguf;
mod mmap;
mod safetensors;

use std::{
    borrow::Cow,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};

pub use config::Config;
use gguf::GgufFile;
use safetensors::SafetensorsDir;

use crate::{
    Error, Result,
    kernels::{dense::DenseMatrix, quantized::QuantMatrix},
};

/// A model's files: its configuration under Hugging Face's names, and its tensors.
pub struct Checkpoint {
    /// The directory or file the model was loaded from.
    pub path: PathBuf,
    pub config: Config,
    pub store: Store,
}

/// The file format of a [`Checkpoint`].
pub enum Store {
    Safetensors(SafetensorsDir),
    Gguf(GgufFile),
}

/// A weight matrix, `[rows, columns]`, where it is computed with.
#[derive(Clone)]
pub enum Matrix {
    /// For candle.
    Dense(Tensor),
    /// In panels that the CPU's own kernels take.
    Panels(Arc<DenseMatrix>),
    /// In blocks that the CPU's own kernels take.
    Packed(Arc<QuantMatrix>),
    /// In any other of ggml's formats, for candle.
    Quantized(Arc<QTensor>),
}

impl Matrix {
    /// Takes over a matrix: in its quantised form if it has one, on the CPU in the type it is stored in, else as
    /// `dtype`.
    pub fn new(stored: StoredMatrix<'_>, dtype: DType, device: &Device) -> Result<Self> {
        let StoredMatrix { rows, columns, encoding, bytes } = stored;
        match encoding {
            Encoding::Dense(stored) => {
                if device.is_cpu()
                    && let Some(panels) = DenseMatrix::new(stored, &bytes, rows, columns)
                {
                    return Ok(Self::Panels(Arc::new(panels)));
                }
                Ok(Self::Dense(to_tensor(&bytes, stored, &[rows, columns])?.to_dtype(dtype)?.to_device(device)?))
            }
            Encoding::Ggml(stored) => {
                if device.is_cpu()
                    && let Some(packed) = QuantMatrix::from_ggml(stored, &bytes, rows, columns)
                {
                    return Ok(Self::Packed(Arc::new(packed)));
                }
                let storage = QStorage::from_data(bytes, device, stored)?;
                Ok(Self::Quantized(Arc::new(QTensor::new(storage, (rows, columns))?)))
            }
        }
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Panels(matrix) => matrix.bytes(),
            Self::Packed(matrix) => matrix.bytes(),
            Self::Quantized(tensor) => tensor.storage_size_in_bytes(),
        }
    }
}

/// A tensor inside a mapped file.
pub struct StoredTensor<'a> {
    pub path: &'a Path,
    pub encoding: Encoding,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Dense(DType),
    /// In blocks along the last dimension.
    Ggml(GgmlDType),
}

/// A matrix as it is stored, row by row.
pub struct StoredMatrix<'a> {
    pub rows: usize,
    pub columns: usize,
    pub encoding: Encoding,
    pub bytes: Cow<'a, [u8]>,
}

impl StoredTensor<'_> {
    /// All numbers in order, if they are not quantised.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.encoding {
            Encoding::Dense(dtype) => {
                let tensor = to_tensor(self.bytes, dtype, self.shape)?;
                Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
            }
            Encoding::Ggml(dtype) => {
                Err(Error::model(self.path, format!("a tensor has type {dtype:?} where none that is quantised can be")))
            }
        }
    }
}

impl<'a> StoredMatrix<'a> {
    /// These rows, in this order.
    pub fn take(&self, rows: impl ExactSizeIterator<Item = usize>) -> StoredMatrix<'static> {
        let row_len = self.bytes.len() / self.rows;
        let count = rows.len();
        let mut bytes = Vec::with_capacity(count * row_len);
        rows.for_each(|row| bytes.extend_from_slice(&self.bytes[row * row_len..][..row_len]));
        StoredMatrix { rows: count, bytes: Cow::Owned(bytes), ..*self }
    }

    /// Rows that follow one another.
    pub fn slice(&self, rows: Range<usize>) -> StoredMatrix<'_> {
        let row_len = self.bytes.len() / self.rows;
        let bytes = Cow::Borrowed(&self.bytes[rows.start * row_len..rows.end * row_len]);
        StoredMatrix { rows: rows.len(), bytes, ..*self }
    }

    /// With rows for columns. Blocks along rows cannot be turned.
    pub fn transposed(self) -> Option<StoredMatrix<'a>> {
        let Encoding::Dense(dtype) = self.encoding else { return None };
        let (rows, columns, size) = (self.columns, self.rows, dtype.size_in_bytes());
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for row in 0..rows {
            (0..columns)
                .for_each(|column| bytes.extend_from_slice(&self.bytes[(column * rows + row) * size..][..size]));
        }
        Some(StoredMatrix { rows, columns, encoding: self.encoding, bytes: Cow::Owned(bytes) })
    }
}

fn to_tensor(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?)
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let config = Config::read(&path.join("config.json"))?;
            let store = Store::Safetensors(SafetensorsDir::open(path)?);
            Ok(Self { path: path.to_owned(), config, store })
        } else {
            let file = GgufFile::open(path)?;
            let config = gguf::config(&file)?;
            Ok(Self { path: path.to_owned(), config, store: Store::Gguf(file) })
        }
    }

    /// Bits per weight and weights per scale; zeros if the weights are not quantised.
    pub fn quantization(&self) -> (u32, u32) {
        match &self.store {
            Store::Safetensors(_) => (0, 0),
            Store::Gguf(file) => file.quantization(),
        }
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        match &self.store {
            Store::Safetensors(dir) => dir.contains(name),
            Store::Gguf(file) => file.contains(name),
        }
    }

    /// A tensor, whatever its shape.
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>> {
        match &self.store {
            Store::Safetensors(dir) => dir.get(name),
            Store::Gguf(file) => file.get(name),
        }
    }

    /// A tensor of `shape` as a matrix whose rows are along its last dimension.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<StoredMatrix<'_>> {
        let tensor = self.tensor(name)?;
        // Some converters leave out dimensions of 1.
        let significant = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
        if significant(tensor.shape) != significant(shape) {
            return Err(shape_error(name, &tensor, shape));
        }
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().product::<usize>() / columns;
        Ok(StoredMatrix { rows, columns, encoding: tensor.encoding, bytes: Cow::Borrowed(tensor.bytes) })
    }

    /// The numbers of a tensor of `len` elements.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape.iter().product::<usize>() != len {
            return Err(shape_error(name, &tensor, &[len]));
        }
        match tensor.encoding {
            Encoding::Ggml(dtype) => {
                Err(Error::model(tensor.path, format!("tensor {name} has type {dtype:?}; a vector must not")))
            }
            Encoding::Dense(_) => tensor.to_f32(),
        }
    }
}

fn shape_error(name: &str, tensor: &StoredTensor<'_>, expected: &[usize]) -> Error {
    let reason = format!("tensor {name} has the shape {:?}; the configuration asks for {expected:?}", tensor.shape);
    Error::model(tensor.path, reason)
}
