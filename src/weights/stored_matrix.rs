//! Matrices as files store them, read in bands of rows.

use std::{borrow::Cow, ops::Range};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{Encoding, mlx_matrix::MlxMatrix, weight_file::FileBytes};
use crate::{Result, kernels::quant::Affine};

/// Bytes that a thread converts at a time: few, since allocators do not return larger pieces to the system.
const BAND_BYTES: usize = 1 << 17;
/// The rows of a band are a multiple of this: of whole panels.
const BAND_ROWS: usize = 16;

/// A matrix as it is stored.
pub enum StoredMatrix<'a> {
    Rows(RowMatrix<'a>),
    Mlx(MlxMatrix<'a>),
    Affine(Affine),
}

/// A matrix row by row.
pub struct RowMatrix<'a> {
    pub rows: usize,
    pub columns: usize,
    pub encoding: Encoding,
    pub bytes: TensorBytes<'a>,
    /// Whether products with quantized rows keep 16 bits of the activations.
    pub precise: bool,
}

/// TensorBytes of a file, or made of such.
pub enum TensorBytes<'a> {
    File(FileBytes<'a>),
    Owned(Vec<u8>),
}

impl TensorBytes<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::File(bytes) => bytes.len(),
            Self::Owned(bytes) => bytes.len(),
        }
    }

    /// All of them.
    pub fn read(&self) -> Result<Cow<'_, [u8]>> {
        match self {
            Self::File(bytes) => bytes.read().map(Cow::Owned),
            Self::Owned(bytes) => Ok(Cow::Borrowed(bytes)),
        }
    }

    /// Some of them, by way of a buffer if they are in a file.
    fn part<'b>(&'b self, part: Range<usize>, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        match self {
            Self::File(bytes) => {
                bytes.read_part(part, buffer)?;
                Ok(buffer.as_slice())
            }
            Self::Owned(bytes) => Ok(&bytes[part]),
        }
    }
}

impl<'a> StoredMatrix<'a> {
    /// These rows, in this order.
    pub fn take(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> Result<StoredMatrix<'static>> {
        Ok(match self {
            Self::Rows(matrix) => StoredMatrix::Rows(matrix.take(rows)?),
            Self::Mlx(matrix) => StoredMatrix::Affine(matrix.take(rows)?),
            Self::Affine(matrix) => StoredMatrix::Affine(matrix.take(rows)),
        })
    }

    /// With rows for columns, if it is not quantized.
    pub fn transposed(self) -> Result<Option<StoredMatrix<'a>>> {
        match self {
            Self::Rows(matrix) => Ok(matrix.transposed()?.map(StoredMatrix::Rows)),
            Self::Mlx(_) | Self::Affine(_) => Ok(None),
        }
    }
}

impl RowMatrix<'_> {
    fn row_len(&self) -> usize {
        self.bytes.len() / self.rows
    }

    fn take(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> Result<RowMatrix<'static>> {
        let count = rows.len();
        let bytes = gather(&self.bytes, self.row_len(), rows)?;
        Ok(RowMatrix { rows: count, bytes: TensorBytes::Owned(bytes), ..*self })
    }

    fn transposed(&self) -> Result<Option<RowMatrix<'static>>> {
        let Encoding::Dense(dtype) = self.encoding else { return Ok(None) };
        let (rows, columns, size) = (self.columns, self.rows, dtype.size_in_bytes());
        let stored = self.bytes.read()?;
        let mut bytes = Vec::with_capacity(stored.len());
        for row in 0..rows {
            (0..columns).for_each(|column| bytes.extend_from_slice(&stored[(column * rows + row) * size..][..size]));
        }
        Ok(Some(RowMatrix { rows, columns, bytes: TensorBytes::Owned(bytes), ..*self }))
    }

    /// Applies `make` to bands of rows, in order: to their bytes and their count.
    pub fn bands<M: Send>(&self, make: impl Fn(&[u8], usize) -> M + Sync) -> impl Iterator<Item = Result<M>> {
        let row_len = self.row_len();
        let read = move |rows: Range<usize>, buffer: &mut Vec<u8>| {
            let part = rows.start * row_len..rows.end * row_len;
            Ok(make(self.bytes.part(part, buffer)?, rows.len()))
        };
        bands(self.rows, row_len, read)
    }
}

/// Rows of `row_len` bytes, one after the other. All between the first and the last are read at once, unless most of
/// them are of no use.
pub fn gather(
    bytes: &TensorBytes<'_>,
    row_len: usize,
    rows: impl ExactSizeIterator<Item = usize> + Clone,
) -> Result<Vec<u8>> {
    const MOST_READ: usize = 4;
    let mut gathered = Vec::with_capacity(rows.len() * row_len);
    let (first, end) = rows.clone().fold((usize::MAX, 0), |(first, end), row| (first.min(row), end.max(row + 1)));
    let mut buffer = Vec::new();
    if end.saturating_sub(first) <= MOST_READ * rows.len() {
        let all = bytes.part(first.min(end) * row_len..end * row_len, &mut buffer)?;
        rows.for_each(|row| gathered.extend_from_slice(&all[(row - first) * row_len..][..row_len]));
    } else {
        for row in rows {
            gathered.extend_from_slice(bytes.part(row * row_len..(row + 1) * row_len, &mut buffer)?);
        }
    }
    Ok(gathered)
}

/// Applies `make` to bands of `rows` rows of `row_len` bytes, as many at a time as there are threads. It may read a
/// band into a buffer.
pub fn bands<M: Send>(
    rows: usize,
    row_len: usize,
    make: impl Fn(Range<usize>, &mut Vec<u8>) -> Result<M> + Sync,
) -> impl Iterator<Item = Result<M>> {
    let height = (BAND_BYTES / row_len.max(1)).next_multiple_of(BAND_ROWS).max(BAND_ROWS);
    let at_once = height * rayon::current_num_threads();
    (0..rows).step_by(at_once).flat_map(move |first| {
        let end = rows.min(first + at_once);
        let starts = (first..end).into_par_iter().step_by(height);
        let made = starts.map_init(Vec::new, |buffer, start| make(start..end.min(start + height), buffer));
        made.collect::<Vec<Result<M>>>()
    })
}

/// Applies `take` to the items, unless one of them is an error.
pub fn unless_failed<M, R>(
    mut items: impl Iterator<Item = Result<M>>,
    take: impl FnOnce(&mut dyn Iterator<Item = M>) -> R,
) -> Result<R> {
    let mut failed = None;
    let mut sound = std::iter::from_fn(|| match items.next()? {
        Ok(item) => Some(item),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let taken = take(&mut sound);
    match failed {
        Some(error) => Err(error),
        None => Ok(taken),
    }
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
