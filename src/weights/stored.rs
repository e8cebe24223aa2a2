use std::ops::{Deref, Range};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{Encoding, mlx::MlxMatrix, mmap::Mapped};
use crate::{Result, kernels::affine::Affine};

/// Bytes that a thread takes over at a time: few, for allocators keep what is freed of more.
const BAND_BYTES: usize = 1 << 17;
/// The rows of a band are a multiple of this: of whole panels.
const BAND_ROWS: usize = 16;

/// A matrix as it is stored.
pub enum StoredMatrix<'a> {
    Rows(Rows<'a>),
    Mlx(MlxMatrix<'a>),
    Affine(Affine),
}

/// A matrix row by row.
pub struct Rows<'a> {
    pub rows: usize,
    pub columns: usize,
    pub encoding: Encoding,
    pub bytes: Bytes<'a>,
    /// Whether products with quantised rows keep 16 bits of the activations.
    pub precise: bool,
}

/// Bytes of a file, or made of such.
pub enum Bytes<'a> {
    Mapped(Mapped<'a>),
    Owned(Vec<u8>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> StoredMatrix<'a> {
    /// These rows, in this order.
    pub fn take(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> StoredMatrix<'static> {
        match self {
            Self::Rows(matrix) => StoredMatrix::Rows(matrix.take(rows)),
            Self::Mlx(matrix) => StoredMatrix::Affine(matrix.take(rows)),
            Self::Affine(matrix) => StoredMatrix::Affine(matrix.take(rows)),
        }
    }

    /// With rows for columns, if it is not quantised.
    pub fn transposed(self) -> Option<StoredMatrix<'a>> {
        match self {
            Self::Rows(matrix) => matrix.transposed().map(StoredMatrix::Rows),
            Self::Mlx(_) | Self::Affine(_) => None,
        }
    }
}

impl Rows<'_> {
    fn row_len(&self) -> usize {
        self.bytes.len() / self.rows
    }

    fn take(&self, rows: impl ExactSizeIterator<Item = usize>) -> Rows<'static> {
        let row_len = self.row_len();
        let count = rows.len();
        let mut bytes = Vec::with_capacity(count * row_len);
        rows.for_each(|row| bytes.extend_from_slice(&self.bytes[row * row_len..][..row_len]));
        Rows { rows: count, bytes: Bytes::Owned(bytes), ..*self }
    }

    fn transposed(&self) -> Option<Rows<'static>> {
        let Encoding::Dense(dtype) = self.encoding else { return None };
        let (rows, columns, size) = (self.columns, self.rows, dtype.size_in_bytes());
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for row in 0..rows {
            (0..columns)
                .for_each(|column| bytes.extend_from_slice(&self.bytes[(column * rows + row) * size..][..size]));
        }
        Some(Rows { rows, columns, bytes: Bytes::Owned(bytes), ..*self })
    }

    /// What `make` makes of bands of the rows, in order: of their bytes and their number.
    pub fn bands<M: Send>(&self, make: impl Fn(&[u8], usize) -> M + Sync) -> impl Iterator<Item = M> {
        let row_len = self.row_len();
        let read = move |rows: Range<usize>| make(&self.bytes[rows.start * row_len..rows.end * row_len], rows.len());
        let release = move |rows: Range<usize>| {
            if let Bytes::Mapped(mapped) = self.bytes {
                mapped.release(rows.start * row_len..rows.end * row_len);
            }
        };
        bands(self.rows, row_len, read, release)
    }
}

/// What `make` makes of bands of `rows` rows of `row_len` bytes, as many at a time as there are threads. `release` is
/// called for those that are done with.
pub fn bands<M: Send>(
    rows: usize,
    row_len: usize,
    make: impl Fn(Range<usize>) -> M + Sync,
    release: impl Fn(Range<usize>),
) -> impl Iterator<Item = M> {
    let height = (BAND_BYTES / row_len.max(1)).next_multiple_of(BAND_ROWS).max(BAND_ROWS);
    let at_once = height * rayon::current_num_threads();
    (0..rows).step_by(at_once).flat_map(move |first| {
        let end = rows.min(first + at_once);
        let starts = (first..end).into_par_iter().step_by(height);
        let made: Vec<M> = starts.map(|start| make(start..end.min(start + height))).collect();
        release(first..end);
        made
    })
}

/// Numbers of this type.
pub fn to_f32(bytes: &[u8], dtype: DType) -> Result<Vec<f32>> {
    let tensor = to_tensor(bytes, dtype, &[bytes.len() / dtype.size_in_bytes()])?;
    Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
}

/// Numbers of this type as a tensor on the CPU.
pub fn to_tensor(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu)?)
}
