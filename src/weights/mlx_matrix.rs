//! MLX's quantized matrices.

use candle_core::DType;

use super::{
    Encoding, StoredTensor,
    stored_matrix::{TensorBytes, gather},
};
use crate::{
    Result,
    kernels::{dense::ElementType, quant::Affine},
};

/// A matrix as MLX quantizes it: codes of a row in a stream of bits, the lowest first, with a scale and a bias for each
/// group.
pub struct MlxMatrix<'a> {
    pub rows: usize,
    pub columns: usize,
    pub bits: usize,
    pub group: usize,
    words: StoredTensor<'a>,
    scales: GroupFactors<'a>,
    biases: GroupFactors<'a>,
}

struct GroupFactors<'a> {
    tensor: StoredTensor<'a>,
    kind: ElementType,
}

impl<'a> MlxMatrix<'a> {
    /// `None` if the tensors are not of the right sizes and types.
    pub fn new(
        [rows, columns]: [usize; 2],
        [bits, group]: [usize; 2],
        [words, scales, biases]: [StoredTensor<'a>; 3],
    ) -> Option<Self> {
        let whole = matches!(words.encoding, Encoding::Dense(DType::U32 | DType::I32));
        let bytes = rows.checked_mul(columns)?.checked_mul(bits)? / 8;
        if !whole || words.bytes.len() != bytes || !(columns * bits).is_multiple_of(32) {
            return None;
        }
        let factors = |tensor: StoredTensor<'a>| {
            let Encoding::Dense(dtype) = tensor.encoding else { return None };
            let kind = ElementType::of(dtype)?;
            let fits = tensor.bytes.len() == rows * (columns / group) * dtype.size_in_bytes();
            fits.then_some(GroupFactors { tensor, kind })
        };
        Some(Self { rows, columns, bits, group, words, scales: factors(scales)?, biases: factors(biases)? })
    }

    /// The bytes that the codes of a row take.
    pub fn row_len(&self) -> usize {
        self.columns * self.bits / 8
    }

    /// These rows, in this order.
    pub fn take(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> Result<Affine> {
        let codes = |bytes: &[u8]| {
            let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            unpacked(&words, self.bits)
        };
        let read = |tensor: &StoredTensor<'_>| {
            gather(&TensorBytes::File(tensor.bytes), tensor.bytes.len() / self.rows, rows.clone())
        };
        let factors = |of: &GroupFactors<'_>| Ok::<_, crate::Error>(of.kind.read(&read(&of.tensor)?));
        Ok(Affine {
            rows: rows.len(),
            columns: self.columns,
            bits: self.bits as u32,
            group: self.group,
            codes: read(&self.words)?.chunks_exact(self.row_len()).flat_map(codes).collect(),
            scales: factors(&self.scales)?,
            offsets: factors(&self.biases)?,
            order: None,
        })
    }
}

/// The codes of a row, `bits` each, the lowest bits of the first word first.
fn unpacked(words: &[u32], bits: usize) -> Vec<u8> {
    let mask = (1u64 << bits) - 1;
    let code = |i: usize| {
        let (word, shift) = (i * bits / 32, i * bits % 32);
        let next = words.get(word + 1).copied().unwrap_or(0);
        let both = u64::from(words[word]) | u64::from(next) << 32;
        (both >> shift & mask) as u8
    };
    (0..words.len() * 32 / bits).map(code).collect()
}
