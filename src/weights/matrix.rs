use std::{borrow::Cow, sync::Arc};

use candle_core::{
    DType, Device, Tensor,
    quantized::{QStorage, QTensor},
};

use super::Encoding;
use crate::{
    Result,
    kernels::{affine::Affine, dense::DenseMatrix, quantized::QuantMatrix},
};

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
        let Rows { rows, columns, encoding, bytes, precise } = stored;
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
                Ok(Self::Packed(Arc::new(QuantMatrix::from_ggml(kind, &bytes, rows, columns, precise))))
            }
            Encoding::Ggml(kind) => match kind.candle() {
                Some(kind) => {
                    let storage = QStorage::from_data(bytes, device, kind)?;
                    Ok(Self::Quantized(Arc::new(QTensor::new(storage, (rows, columns))?)))
                }
                None => {
                    let matrix = QuantMatrix::from_ggml(kind, &bytes, rows, columns, precise);
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
            StoredMatrix::Rows(Rows { rows, columns, encoding: Encoding::Dense(stored), bytes, .. })
                if columns % 32 == 0 =>
            {
                let weights = Affine::quantized(&to_f32(&bytes, stored)?, rows, columns, bits);
                Self::of_affine(&weights, dtype, device, false)
            }
            stored => Self::new(stored, dtype, device),
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> Result<[usize; 2]> {
        Ok(match self {
            Self::Dense(tensor) => tensor.dims2()?.into(),
            Self::Panels(matrix) => [matrix.rows, matrix.columns],
            Self::Packed(matrix) => [matrix.rows, matrix.columns],
            Self::Quantized(tensor) => tensor.shape().dims2()?.into(),
        })
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Dense(tensor) => tensor.get(row)?.to_dtype(DType::F32)?.to_vec1()?,
            Self::Panels(matrix) => matrix.row(row),
            Self::Packed(matrix) => matrix.row(row),
            Self::Quantized(tensor) => {
                tensor.embedding(&Tensor::new(&[row as u32], &tensor.device())?)?.get(0)?.to_vec1()?
            }
        })
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
    /// Whether products with quantised rows keep 16 bits of the activations.
    pub precise: bool,
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
        Some(Rows { rows, columns, bytes: Cow::Owned(bytes), ..*self })
    }
}

/// Numbers of this type.
pub fn to_f32(bytes: &[u8], dtype: DType) -> Result<Vec<f32>> {
    let tensor = to_tensor(bytes, dtype, &[bytes.len() / dtype.size_in_bytes()])?;
    Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
}

fn to_tensor(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?)
}

fn dense(weights: Vec<f32>, rows: usize, columns: usize, dtype: DType, device: &Device) -> Result<Matrix> {
    if device.is_cpu() {
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let (encoding, bytes) = (Encoding::Dense(DType::F32), Cow::Owned(bytes));
        let rows = Rows { rows, columns, encoding, bytes, precise: false };
        return Matrix::of_rows(rows, dtype, device);
    }
    Ok(Matrix::Dense(Tensor::from_vec(weights, (rows, columns), device)?.to_dtype(dtype)?))
}
