//! Weights as `scale * code + offset`: the quantization of MLX, GPTQ and AWQ.

/// A quantized matrix, `[rows, columns]`. Groups of weights along a row share a scale and an offset.
#[derive(Debug, Clone)]
pub struct Affine {
    pub rows: usize,
    pub columns: usize,
    /// Bits of a code.
    pub bits: u32,
    /// Weights of a group.
    pub group: usize,
    /// `[rows, columns]`.
    pub codes: Vec<u8>,
    /// `[rows, columns / group]`.
    pub scales: Vec<f32>,
    /// `[rows, columns / group]`.
    pub offsets: Vec<f32>,
    /// The column of the activations that belongs to each column of the matrix, if the order differs (GPTQ's
    /// `act_order`).
    pub order: Option<Vec<u32>>,
}

impl Affine {
    /// Quantizes weights, `[rows, columns]`, to 4 or 8 bits in groups of 32, between the least and the greatest of a
    /// group.
    pub fn quantized(weights: &[f32], rows: usize, columns: usize, bits: u32) -> Self {
        const GROUP: usize = 32;
        let steps = f32::from((1u16 << bits) - 1);
        let mut this = Self {
            rows,
            columns,
            bits,
            group: GROUP,
            codes: Vec::with_capacity(weights.len()),
            scales: Vec::with_capacity(weights.len() / GROUP),
            offsets: Vec::with_capacity(weights.len() / GROUP),
            order: None,
        };
        for weights in weights.chunks_exact(GROUP) {
            let least = weights.iter().copied().fold(f32::INFINITY, f32::min);
            let greatest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = (greatest - least) / steps;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            this.codes.extend(weights.iter().map(|weight| ((weight - least) * inverse).round() as u8));
            this.scales.push(scale);
            this.offsets.push(least);
        }
        this
    }

    /// The codes of a row.
    pub fn codes(&self, row: usize) -> &[u8] {
        &self.codes[row * self.columns..][..self.columns]
    }

    /// The scale and the offset of a group.
    pub fn factors(&self, row: usize, group: usize) -> (f32, f32) {
        let at = row * (self.columns / self.group) + group;
        (self.scales[at], self.offsets[at])
    }

    /// The matrix of these rows, in this order.
    #[must_use]
    pub fn take(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> Self {
        let groups = self.columns / self.group;
        let factors = |of: &[f32]| rows.clone().flat_map(|row| of[row * groups..][..groups].to_vec()).collect();
        Self {
            rows: rows.len(),
            codes: rows.clone().flat_map(|row| self.codes(row).to_vec()).collect(),
            scales: factors(&self.scales),
            offsets: factors(&self.offsets),
            order: self.order.clone(),
            ..*self
        }
    }

    /// All weights, `[rows, columns]`, in the order of the activations' columns.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows * self.columns];
        for (row, weights) in weights.chunks_exact_mut(self.columns).enumerate() {
            for (column, code) in self.codes(row).iter().enumerate() {
                let (scale, offset) = self.factors(row, column / self.group);
                let to = self.order.as_ref().map_or(column, |order| order[column] as usize);
                weights[to] = scale.mul_add(f32::from(*code), offset);
            }
        }
        weights
    }
}
