//! Where tensors come from: files, mapped and checked.

mod config;
pub mod gguf;
mod mmap;
mod packed;
mod safetensors;

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{QStorage, QTensor},
};

pub use config::Config;
use gguf::GgufFile;
use packed::Module;
use safetensors::SafetensorsDir;

use crate::{
    Error, Result,
    kernels::{affine::Affine, dense::DenseMatrix, ggml::GgmlType, quantized::QuantMatrix},
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
    /// Takes over a matrix: on the CPU as it is stored, else as `dtype` unless candle knows its quantised form.
    pub fn new(stored: StoredMatrix<'_>, dtype: DType, device: &Device) -> Result<Self> {
        match stored {
            StoredMatrix::Rows(rows) => Self::of_rows(rows, dtype, device),
            StoredMatrix::Affine(affine) => Self::of_affine(&affine, dtype, device, true),
        }
    }

    fn of_rows(stored: Rows<'_>, dtype: DType, device: &Device) -> Result<Self> {
        let Rows { rows, columns, encoding, bytes } = stored;
        match encoding {
            Encoding::Dense(stored) => {
                if device.is_cpu()
                    && let Some(panels) = DenseMatrix::new(stored, &bytes, rows, columns)
                {
                    return Ok(Self::Panels(Arc::new(panels)));
                }
                Ok(Self::Dense(to_tensor(&bytes, stored, &[rows, columns])?.to_dtype(dtype)?.to_device(device)?))
            }
            Encoding::Ggml(kind) if device.is_cpu() => {
                Ok(Self::Packed(Arc::new(QuantMatrix::from_ggml(kind, &bytes, rows, columns))))
            }
            Encoding::Ggml(kind) => match kind.candle() {
                Some(kind) => {
                    let storage = QStorage::from_data(bytes, device, kind)?;
                    Ok(Self::Quantized(Arc::new(QTensor::new(storage, (rows, columns))?)))
                }
                None => {
                    let matrix = QuantMatrix::from_ggml(kind, &bytes, rows, columns);
                    let weights: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
                    dense(weights, rows, columns, dtype, device)
                }
            },
        }
    }

    /// If `precise`, products keep 16 bits of the activations.
    fn of_affine(matrix: &Affine, dtype: DType, device: &Device, precise: bool) -> Result<Self> {
        if device.is_cpu()
            && let Some(packed) = QuantMatrix::from_affine(matrix, precise)
        {
            return Ok(Self::Packed(Arc::new(packed)));
        }
        dense(matrix.to_f32(), matrix.rows, matrix.columns, dtype, device)
    }

    /// Quantises to `bits` on the way, 4 or 8, if the matrix is not quantised yet and can be cut into blocks.
    pub fn quantized(stored: StoredMatrix<'_>, bits: u32, dtype: DType, device: &Device) -> Result<Self> {
        match stored {
            StoredMatrix::Rows(rows) if matches!(rows.encoding, Encoding::Dense(_)) && rows.columns % 32 == 0 => {
                let weights = to_f32(&rows.bytes, rows.encoding)?;
                Self::of_affine(&Affine::quantized(&weights, rows.rows, rows.columns, bits), dtype, device, false)
            }
            stored => Self::new(stored, dtype, device),
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
    Ggml(GgmlType),
}

/// A matrix as it is stored.
pub enum StoredMatrix<'a> {
    Rows(Rows<'a>),
    Affine(Affine),
}

/// A matrix row by row.
pub struct Rows<'a> {
    pub rows: usize,
    pub columns: usize,
    pub encoding: Encoding,
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> StoredMatrix<'a> {
    /// These rows, in this order.
    pub fn take(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> StoredMatrix<'static> {
        match self {
            Self::Rows(matrix) => StoredMatrix::Rows(matrix.take(rows)),
            Self::Affine(matrix) => StoredMatrix::Affine(matrix.take(rows)),
        }
    }

    /// With rows for columns, if it is not quantised.
    pub fn transposed(self) -> Option<StoredMatrix<'a>> {
        match self {
            Self::Rows(matrix) => matrix.transposed().map(StoredMatrix::Rows),
            Self::Affine(_) => None,
        }
    }
}

impl Rows<'_> {
    fn take(&self, rows: impl ExactSizeIterator<Item = usize>) -> Rows<'static> {
        let row_len = self.bytes.len() / self.rows;
        let count = rows.len();
        let mut bytes = Vec::with_capacity(count * row_len);
        rows.for_each(|row| bytes.extend_from_slice(&self.bytes[row * row_len..][..row_len]));
        Rows { rows: count, bytes: Cow::Owned(bytes), ..*self }
    }

    fn transposed(&self) -> Option<Rows<'static>> {
        let Encoding::Dense(dtype) = self.encoding else { return None };
        let (rows, columns, size) = (self.columns, self.rows, dtype.size_in_bytes());
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for row in 0..rows {
            (0..columns)
                .for_each(|column| bytes.extend_from_slice(&self.bytes[(column * rows + row) * size..][..size]));
        }
        Some(Rows { rows, columns, encoding: self.encoding, bytes: Cow::Owned(bytes) })
    }
}

/// Numbers that are not quantised.
fn to_f32(bytes: &[u8], encoding: Encoding) -> Result<Vec<f32>> {
    let Encoding::Dense(dtype) = encoding else {
        return Err(Error::internal("quantised weights are no plain numbers"));
    };
    let tensor = to_tensor(bytes, dtype, &[bytes.len() / dtype.size_in_bytes()])?;
    Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
}

fn to_tensor(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?)
}

fn dense(weights: Vec<f32>, rows: usize, columns: usize, dtype: DType, device: &Device) -> Result<Matrix> {
    if device.is_cpu() {
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let rows = Rows { rows, columns, encoding: Encoding::Dense(DType::F32), bytes: Cow::Owned(bytes) };
        return Matrix::of_rows(rows, dtype, device);
    }
    Ok(Matrix::Dense(Tensor::from_vec(weights, (rows, columns), device)?.to_dtype(dtype)?))
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
            Store::Safetensors(_) => self.config.quantization(),
            Store::Gguf(file) => file.quantization(),
        }
    }

    /// Whether there is a weight of this name, in whichever form.
    pub fn contains(&self, name: &str) -> bool {
        let packed = name.strip_suffix(".weight").map(|module| format!("{module}.qweight"));
        self.has_tensor(name) || packed.is_some_and(|name| self.has_tensor(&name))
    }

    fn has_tensor(&self, name: &str) -> bool {
        match &self.store {
            Store::Safetensors(dir) => dir.contains(name),
            Store::Gguf(file) => file.contains(name),
        }
    }

    /// Gives back what memory of a tensor the system holds, once all of it has been read.
    pub fn release(&self, name: &str) {
        match &self.store {
            Store::Safetensors(dir) => dir.release(name),
            Store::Gguf(file) => file.release(name),
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
        let columns = shape.last().copied().unwrap_or(1);
        // What no tensor has been held against yet may be absurd.
        let rows = shape[..shape.len().saturating_sub(1)].iter().fold(1, |rows: usize, n| rows.saturating_mul(*n));
        if let Store::Safetensors(_) = self.store
            && let Some(module) = name.strip_suffix(".weight")
            && let Some(matrix) = Module::new(self, module, rows, columns).read()?
        {
            return Ok(matrix);
        }
        let tensor = self.tensor(name)?;
        // Some converters leave out dimensions of 1.
        let significant = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
        if significant(tensor.shape) != significant(shape) {
            return Err(shape_error(name, &tensor, shape));
        }
        tensor.check_numbers(name)?;
        Ok(StoredMatrix::Rows(Rows { rows, columns, encoding: tensor.encoding, bytes: Cow::Borrowed(tensor.bytes) }))
    }

    /// The numbers of a tensor of `len` elements.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape.iter().product::<usize>() != len {
            return Err(shape_error(name, &tensor, &[len]));
        }
        if let Encoding::Ggml(kind) = tensor.encoding {
            return Err(Error::model(tensor.path, format!("tensor {name} has type {kind:?}; a vector must not")));
        }
        tensor.check_numbers(name)?;
        to_f32(tensor.bytes, tensor.encoding)
    }
}

impl StoredTensor<'_> {
    /// Refuses what only quantised modules have.
    fn check_numbers(&self, name: &str) -> Result<()> {
        match self.encoding {
            Encoding::Ggml(_) | Encoding::Dense(DType::F32 | DType::F16 | DType::BF16) => Ok(()),
            Encoding::Dense(dtype) => {
                let reason = format!("tensor {name} has dtype {dtype:?}; F32, F16 and BF16 are supported");
                Err(Error::model(self.path, reason))
            }
        }
    }
}

fn shape_error(name: &str, tensor: &StoredTensor<'_>, expected: &[usize]) -> Error {
    let reason = format!("tensor {name} has the shape {:?}; the configuration asks for {expected:?}", tensor.shape);
    Error::model(tensor.path, reason)
}
