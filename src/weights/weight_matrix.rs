use std::sync::Arc;

use candle_core::{
    DType, Device, Tensor,
    quantized::{QStorage, QTensor},
};

use super::{
    Encoding, StoredMatrix,
    stored_matrix::{RowMatrix, TensorBytes, bands, to_tensor, unless_failed},
};
use crate::{
    Error, Result,
    kernels::{
        dense::{DenseMatrix, ElementType},
        quant::{Affine, QuantMatrix},
    },
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
    /// Takes over a matrix: on the CPU as it is stored, else as `dtype` unless candle knows its quantized form.
    pub fn new(stored: StoredMatrix<'_>, dtype: DType, device: &Device) -> Result<Self> {
        match stored {
            StoredMatrix::Rows(rows) => Self::of_rows(&rows, dtype, device),
            StoredMatrix::Mlx(matrix) => {
                let parts = bands(matrix.rows, matrix.row_len(), |rows, _| matrix.take(rows));
                Self::of_affine([matrix.rows, matrix.columns], parts, true, dtype, device)
            }
            StoredMatrix::Affine(affine) => {
                Self::of_affine([affine.rows, affine.columns], [Ok(affine)].into_iter(), true, dtype, device)
            }
        }
    }

    fn of_rows(stored: &RowMatrix<'_>, dtype: DType, device: &Device) -> Result<Self> {
        let RowMatrix { rows, columns, encoding, precise, .. } = *stored;
        match encoding {
            Encoding::Dense(kind) => {
                if let (true, Some(kind)) = (device.is_cpu(), ElementType::of(kind)) {
                    let bands = stored.bands(|bytes, rows| DenseMatrix::new(kind, bytes, rows, columns));
                    let panels = unless_failed(bands, |bands| DenseMatrix::of_bands(rows, bands))?;
                    return Ok(Self::Panels(Arc::new(panels.ok_or_else(no_rows)?)));
                }
                Ok(Self::Dense(
                    to_tensor(&stored.bytes.read()?, kind, &[rows, columns])?.to_dtype(dtype)?.to_device(device)?,
                ))
            }
            Encoding::Ggml(kind) => {
                let pack = |bytes: &[u8], rows| QuantMatrix::from_ggml(kind, bytes, rows, columns, precise);
                if device.is_cpu() {
                    let packed = unless_failed(stored.bands(pack), |bands| QuantMatrix::of_bands(rows, bands))?;
                    return Ok(Self::Packed(Arc::new(packed.ok_or_else(no_rows)?)));
                }
                match kind.candle() {
                    Some(kind) => {
                        let storage = QStorage::from_data(stored.bytes.read()?, device, kind)?;
                        Ok(Self::Quantized(Arc::new(QTensor::new(storage, (rows, columns))?)))
                    }
                    None => {
                        let matrix = pack(&stored.bytes.read()?, rows);
                        let weights: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
                        dense(weights, [rows, columns], dtype, device)
                    }
                }
            }
        }
    }

    /// Takes over bands of a matrix of this shape. If `precise`, products keep 16 bits of the activations.
    fn of_affine(
        shape: [usize; 2],
        bands: impl Iterator<Item = Result<Affine>>,
        precise: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        unless_failed(bands, |bands| {
            let mut bands = bands.peekable();
            if device.is_cpu() && bands.peek().is_some_and(QuantMatrix::takes) {
                let packed = bands.map(|band| QuantMatrix::from_affine(&band, precise));
                return Ok(Self::Packed(Arc::new(QuantMatrix::of_bands(shape[0], packed).ok_or_else(no_rows)?)));
            }
            dense(bands.flat_map(|band| band.to_f32()).collect(), shape, dtype, device)
        })?
    }

    /// Quantizes to `bits` on the way, 4 or 8, if the matrix is not quantized yet and can be cut into blocks.
    pub fn quantized(stored: StoredMatrix<'_>, bits: u32, dtype: DType, device: &Device) -> Result<Self> {
        match stored {
            StoredMatrix::Rows(matrix @ RowMatrix { encoding: Encoding::Dense(kind), columns, .. })
                if columns % 32 == 0
                    && let Some(kind) = ElementType::of(kind) =>
            {
                let bands = matrix.bands(|bytes, rows| Affine::quantized(&kind.read(bytes), rows, columns, bits));
                Self::of_affine([matrix.rows, columns], bands, false, dtype, device)
            }
            stored => Self::new(stored, dtype, device),
        }
    }

    /// RowMatrix and columns.
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

fn dense(weights: Vec<f32>, [rows, columns]: [usize; 2], dtype: DType, device: &Device) -> Result<Matrix> {
    if device.is_cpu() {
        let bytes = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let (encoding, bytes) = (Encoding::Dense(DType::F32), TensorBytes::Owned(bytes));
        return Matrix::of_rows(&RowMatrix { rows, columns, encoding, bytes, precise: false }, dtype, device);
    }
    Ok(Matrix::Dense(Tensor::from_vec(weights, (rows, columns), device)?.to_dtype(dtype)?))
}

fn no_rows() -> Error {
    Error::internal("a matrix has no rows")
}
