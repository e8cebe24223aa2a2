//! Where tensors come from: files, mapped and checked, under Hugging Face's names.

mod config;
pub mod gguf;
mod mmap;
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
use gguf::{GgufFile, GgufTensor};
use safetensors::SafetensorsDir;

use crate::{
    Error, Result,
    kernels::{dense::DenseMatrix, quantized::QuantMatrix},
};

/// A model's files: its configuration and its tensors, both under Hugging Face's names.
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

/// A weight matrix, `[rows, columns]`, as it was stored.
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

/// The bytes of an unquantised tensor inside a mapped file.
pub struct RawTensor<'a> {
    pub path: &'a Path,
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl RawTensor<'_> {
    fn to_tensor(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = Tensor::from_raw_buffer(self.bytes, self.dtype, self.shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    /// All elements in order.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(self.to_tensor(DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1()?)
    }
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

    /// Loads a matrix of `shape`: in its quantised form if it has one, on the CPU in the type it is
    /// stored in, else as `dtype`.
    pub fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Matrix> {
        match self.get(name)? {
            GgufTensor::Dense(raw) => {
                self.check(name, raw.path, raw.shape, &shape)?;
                let bytes = self.in_hugging_face_order(name, raw.bytes, shape[0])?;
                if device.is_cpu()
                    && let Some(panels) = DenseMatrix::new(raw.dtype, &bytes, shape[0], shape[1])
                {
                    return Ok(Matrix::Panels(Arc::new(panels)));
                }
                Ok(Matrix::Dense(RawTensor { bytes: &bytes, ..raw }.to_tensor(dtype, device)?))
            }
            GgufTensor::Quantized { dtype, shape: stored, bytes } => {
                self.check(name, &self.path, stored, &shape)?;
                let bytes = self.in_hugging_face_order(name, bytes, shape[0])?;
                if device.is_cpu()
                    && let Some(packed) = QuantMatrix::from_ggml(dtype, &bytes, shape[0], shape[1])
                {
                    return Ok(Matrix::Packed(Arc::new(packed)));
                }
                let storage = QStorage::from_data(bytes, device, dtype)?;
                Ok(Matrix::Quantized(Arc::new(QTensor::new(storage, shape.as_slice())?)))
            }
        }
    }

    /// Loads a vector of `len` elements.
    pub fn vector(&self, name: &str, len: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        match self.get(name)? {
            GgufTensor::Dense(raw) => {
                self.check(name, raw.path, raw.shape, &[len])?;
                let bytes = self.in_hugging_face_order(name, raw.bytes, len)?;
                RawTensor { bytes: &bytes, ..raw }.to_tensor(dtype, device)
            }
            GgufTensor::Quantized { dtype, .. } => {
                Err(Error::model(&self.path, format!("tensor {name} has type {dtype:?}; a vector must not")))
            }
        }
    }

    fn get(&self, name: &str) -> Result<GgufTensor<'_>> {
        match &self.store {
            Store::Safetensors(dir) => dir.get(name).map(GgufTensor::Dense),
            Store::Gguf(file) => {
                let stored = gguf::tensor_name(name)
                    .ok_or_else(|| Error::model(&self.path, format!("GGUF has no name for the tensor {name}")))?;
                file.get(&stored)
            }
        }
    }

    fn check(&self, name: &str, path: &Path, stored: &[usize], expected: &[usize]) -> Result<()> {
        if stored == expected {
            return Ok(());
        }
        let reason = format!("tensor {name} has the shape {stored:?}; the configuration asks for {expected:?}");
        Err(Error::model(path, reason))
    }

    /// llama.cpp stores the rows of some architectures' queries and keys so that the two halves of a rotary
    /// pair are neighbours; this undoes it. Quantisation runs along rows, so whole rows move.
    fn in_hugging_face_order<'a>(&self, name: &str, bytes: &'a [u8], rows: usize) -> Result<Cow<'a, [u8]>> {
        let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
        let arch = self.config.opt_str("model_type")?.unwrap_or_default();
        if !rotated || !matches!(self.store, Store::Gguf(_)) || !gguf::pairs_neighbours(arch) {
            return Ok(Cow::Borrowed(bytes));
        }
        let head_dim = match self.config.opt_usize("head_dim")? {
            Some(head_dim) => head_dim,
            None => self.config.size("hidden_size")? / self.config.size("num_attention_heads")?,
        };
        if head_dim == 0 || head_dim % 2 != 0 || !rows.is_multiple_of(head_dim) {
            return Err(Error::model(&self.path, format!("tensor {name}: {rows} rows in heads of {head_dim}")));
        }
        let row_len = bytes.len() / rows;
        let mut ordered = Vec::with_capacity(bytes.len());
        for row in 0..rows {
            let (head, within) = (row / head_dim, row % head_dim);
            let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
            let stored = head * head_dim + 2 * pair + half;
            ordered.extend_from_slice(&bytes[stored * row_len..][..row_len]);
        }
        Ok(Cow::Owned(ordered))
    }
}
