//! Weights in the form that products take them in.

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
        Isa,
        dense::{DenseMatrix, ElementType},
        quant::{Affine, GgmlType, QuantMatrix},
    },
};

/// A weight matrix, `[rows, columns]`.
#[derive(Clone)]
pub enum WeightMatrix {
    /// Floats for tensor operations.
    Dense(Tensor),
    /// Panels of floats for the CPU's kernels.
    Panels(Arc<DenseMatrix>),
    /// Quantized blocks for the CPU's kernels.
    Packed(Arc<QuantMatrix>),
    /// Quantized blocks for tensor operations.
    Quantized(Arc<QTensor>),
}

/// The engine that computes with weights, and so the memory and form that they are placed in.
#[derive(Debug, Clone)]
pub enum ComputeTarget {
    /// The CPU's kernels. They take weights in the precision of the file.
    Kernels(Isa),
    /// Tensor operations on a device, on activations of this type. Weights are of that type, too, unless candle knows
    /// their quantized form.
    Tensors(Device, DType),
}

impl WeightMatrix {
    /// Reads a stored matrix into the form that `target` takes.
    pub fn place(stored: StoredMatrix<'_>, target: &ComputeTarget) -> Result<Self> {
        match stored {
            StoredMatrix::Rows(rows) => Self::of_rows(&rows, target),
            StoredMatrix::Mlx(matrix) => {
                let parts = bands(matrix.rows, matrix.row_len(), |rows, _| matrix.take(rows));
                Self::of_affine([matrix.rows, matrix.columns], parts, true, target)
            }
            StoredMatrix::Affine(affine) => {
                Self::of_affine([affine.rows, affine.columns], [Ok(affine)].into_iter(), true, target)
            }
        }
    }

    /// As [`place`](Self::place), and quantizes to `bits`, 4 or 8, on the way, unless the matrix is quantized already
    /// or cannot be cut into blocks.
    pub fn quantize(stored: StoredMatrix<'_>, bits: u32, target: &ComputeTarget) -> Result<Self> {
        match stored {
            StoredMatrix::Rows(matrix @ RowMatrix { encoding: Encoding::Dense(kind), columns, .. })
                if columns % 32 == 0
                    && let Some(kind) = ElementType::of(kind) =>
            {
                let bands = matrix.bands(|bytes, rows| Affine::quantized(&kind.read(bytes), rows, columns, bits));
                Self::of_affine([matrix.rows, columns], bands, false, target)
            }
            stored => Self::place(stored, target),
        }
    }

    fn of_rows(stored: &RowMatrix<'_>, target: &ComputeTarget) -> Result<Self> {
        match (stored.encoding, target) {
            (Encoding::Dense(dtype), ComputeTarget::Kernels(_)) => Self::panels(stored, dtype),
            (Encoding::Dense(kind), ComputeTarget::Tensors(device, dtype)) => {
                let tensor = to_tensor(&stored.bytes.read()?, kind, &[stored.rows, stored.columns])?;
                Ok(Self::Dense(tensor.to_dtype(*dtype)?.to_device(device)?))
            }
            (Encoding::Ggml(kind), ComputeTarget::Kernels(_)) => {
                let RowMatrix { rows, columns, precise, .. } = *stored;
                let pack = |bytes: &[u8], rows| QuantMatrix::from_ggml(kind, bytes, rows, columns, precise);
                let packed = unless_failed(stored.bands(pack), |bands| QuantMatrix::of_bands(rows, bands))?;
                Ok(Self::Packed(Arc::new(packed.ok_or_else(no_rows)?)))
            }
            (Encoding::Ggml(kind), ComputeTarget::Tensors(device, dtype)) => Self::blocks(stored, kind, device, *dtype),
        }
    }

    fn panels(stored: &RowMatrix<'_>, dtype: DType) -> Result<Self> {
        let RowMatrix { rows, columns, .. } = *stored;
        let kind = ElementType::of(dtype)
            .ok_or_else(|| Error::internal(format!("a matrix of {dtype:?}, which the kernels do not have")))?;
        let bands = stored.bands(|bytes, rows| DenseMatrix::new(kind, bytes, rows, columns));
        let panels = unless_failed(bands, |bands| DenseMatrix::of_bands(rows, bands))?;
        Ok(Self::Panels(Arc::new(panels.ok_or_else(no_rows)?)))
    }

    /// ggml's blocks for tensor operations; floats where candle does not know the type.
    fn blocks(stored: &RowMatrix<'_>, kind: GgmlType, device: &Device, dtype: DType) -> Result<Self> {
        let RowMatrix { rows, columns, precise, .. } = *stored;
        let bytes = stored.bytes.read()?;
        match kind.candle() {
            Some(kind) => {
                let storage = QStorage::from_data(bytes, device, kind)?;
                Ok(Self::Quantized(Arc::new(QTensor::new(storage, (rows, columns))?)))
            }
            None => {
                let matrix = QuantMatrix::from_ggml(kind, &bytes, rows, columns, precise);
                let weights: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
                Ok(Self::Dense(Tensor::from_vec(weights, (rows, columns), device)?.to_dtype(dtype)?))
            }
        }
    }

    /// Takes over bands of a matrix of this shape. If `precise`, products keep 16 bits of the activations.
    fn of_affine(
        shape: [usize; 2],
        bands: impl Iterator<Item = Result<Affine>>,
        precise: bool,
        target: &ComputeTarget,
    ) -> Result<Self> {
        unless_failed(bands, |bands| {
            let mut bands = bands.peekable();
            let packs = matches!(target, ComputeTarget::Kernels(_)) && bands.peek().is_some_and(QuantMatrix::takes);
            if packs {
                let packed = bands.map(|band| QuantMatrix::from_affine(&band, precise));
                return Ok(Self::Packed(Arc::new(QuantMatrix::of_bands(shape[0], packed).ok_or_else(no_rows)?)));
            }
            Self::of_floats(bands.flat_map(|band| band.to_f32()).collect(), shape, target)
        })?
    }

    fn of_floats(weights: Vec<f32>, [rows, columns]: [usize; 2], target: &ComputeTarget) -> Result<Self> {
        match target {
            ComputeTarget::Kernels(_) => {
                let bytes = TensorBytes::Owned(weights.iter().flat_map(|weight| weight.to_le_bytes()).collect());
                let encoding = Encoding::Dense(DType::F32);
                Self::panels(&RowMatrix { rows, columns, encoding, bytes, precise: false }, DType::F32)
            }
            ComputeTarget::Tensors(device, dtype) => {
                Ok(Self::Dense(Tensor::from_vec(weights, (rows, columns), device)?.to_dtype(*dtype)?))
            }
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

    /// Whether the CPU's kernels take it.
    pub fn is_for_kernels(&self) -> bool {
        matches!(self, Self::Panels(_) | Self::Packed(_))
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

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            Self::Panels(matrix) => matrix.bytes(),
            Self::Packed(matrix) => matrix.bytes(),
            Self::Quantized(tensor) => tensor.storage_size_in_bytes(),
        }
    }
}

fn no_rows() -> Error {
    Error::internal("a matrix has no rows")
}
