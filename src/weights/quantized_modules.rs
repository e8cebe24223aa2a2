//! Quantized matrices of Hugging Face directories: the tensors that MLX, GPTQ, AWQ, FP8 and MXFP4 checkpoints hold in
//! place of a weight.

use candle_core::DType;
use half::f16;

use super::{Checkpoint, Encoding, RowMatrix, StoredMatrix, StoredTensor, TensorBytes, mlx_matrix::MlxMatrix};
use crate::{
    Error, Result,
    kernels::quant::{Affine, GgmlType},
};

/// The order of the codes in AWQ's words.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A module whose weight, `[rows, columns]`, may be quantized.
pub struct QuantizedModule<'a> {
    checkpoint: &'a Checkpoint,
    name: String,
    rows: usize,
    columns: usize,
}

impl<'a> QuantizedModule<'a> {
    pub fn new(checkpoint: &'a Checkpoint, name: &str, rows: usize, columns: usize) -> Self {
        Self { checkpoint, name: name.to_owned(), rows, columns }
    }

    /// The weight, if it is stored in one of these forms.
    pub fn read(&self) -> Result<Option<StoredMatrix<'a>>> {
        if self.contains("qweight") {
            let config = self.checkpoint.config.opt_object("quantization_config")?;
            return match config.as_ref().map(|config| config.opt_str("quant_method")).transpose()?.flatten() {
                Some("gptq") => self.gptq().map(|matrix| Some(StoredMatrix::Affine(matrix))),
                Some("awq") => self.awq().map(|matrix| Some(StoredMatrix::Affine(matrix))),
                method => {
                    Err(self.bad(&format!("has a qweight and the quant_method {method:?}; gptq and awq are known")))
                }
            };
        }
        let [blocks, scales] = ["blocks", "scales"].map(|parameter| format!("{}_{parameter}", self.name));
        if self.checkpoint.has_tensor(&blocks) {
            return self.mxfp4(&blocks, &scales).map(|rows| Some(StoredMatrix::Rows(rows)));
        }
        if !self.contains("weight") {
            return Ok(None);
        }
        match self.tensor("weight")?.encoding {
            Encoding::Dense(DType::U32) => self.mlx().map(Some),
            Encoding::Dense(DType::F8E4M3) => self.fp8().map(|rows| Some(StoredMatrix::Rows(rows))),
            _ => Ok(None),
        }
    }

    fn parameter(&self, parameter: &str) -> String {
        format!("{}.{parameter}", self.name)
    }

    fn contains(&self, parameter: &str) -> bool {
        self.checkpoint.has_tensor(&self.parameter(parameter))
    }

    fn tensor(&self, parameter: &str) -> Result<StoredTensor<'a>> {
        self.checkpoint.tensor(&self.parameter(parameter))
    }

    fn bad(&self, reason: &str) -> Error {
        Error::model(&self.checkpoint.path, format!("{} {reason}", self.name))
    }

    fn bad_shape(&self, parameter: &str, tensor: &StoredTensor<'_>) -> Error {
        self.bad_tensor(&self.parameter(parameter), tensor)
    }

    fn bad_tensor(&self, name: &str, tensor: &StoredTensor<'_>) -> Error {
        let (rows, columns) = (self.rows, self.columns);
        let reason = format!("{name} has the shape {:?} for a weight of [{rows}, {columns}]", tensor.shape);
        Error::model(tensor.path, reason)
    }

    /// Words of 32 bits: a matrix of these, or a vector if there is one row.
    fn words(&self, parameter: &str, rows: usize, columns: usize) -> Result<Vec<u32>> {
        let tensor = self.tensor(parameter)?;
        let whole = matches!(tensor.encoding, Encoding::Dense(DType::U32 | DType::I32));
        let fits = *tensor.shape == [rows, columns] || (rows == 1 && *tensor.shape == [columns]);
        if !whole || !fits {
            return Err(self.bad_shape(parameter, &tensor));
        }
        Ok(tensor.bytes.read()?.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// Numbers, as many as these, in whichever shape.
    fn values(&self, parameter: &str, len: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(&self.parameter(parameter), len)
    }

    /// MLX's: how many bits and how large a group is the shapes say; it may differ between modules.
    fn mlx(&self) -> Result<StoredMatrix<'a>> {
        let (weight, scales) = (self.tensor("weight")?, self.tensor("scales")?);
        let (Some(words), Some(groups)) = (weight.shape.last(), scales.shape.last()) else {
            return Err(self.bad_shape("weight", &weight));
        };
        let row_bits = words.saturating_mul(32);
        let (bits, group) = (row_bits / self.columns, self.columns / (*groups).max(1));
        let fits = row_bits == bits * self.columns && group * groups == self.columns;
        if !fits || !matches!(bits, 2..=6 | 8) {
            return Err(self.bad_shape("weight", &weight));
        }
        if !self.contains("biases") {
            return match (bits, group, scales.encoding) {
                (4, 32, Encoding::Dense(DType::U8)) => {
                    let [weight, scales] = ["weight", "scales"].map(|parameter| self.parameter(parameter));
                    self.mxfp4(&weight, &scales).map(StoredMatrix::Rows)
                }
                _ => {
                    let reason = "has no biases: of MLX's modes affine and mxfp4 are supported";
                    Err(self.bad(&format!("with {bits} bits in groups of {group} {reason}")))
                }
            };
        }
        let biases = self.tensor("biases")?;
        let matrix = MlxMatrix::new([self.rows, self.columns], [bits, group], [weight, scales, biases]);
        matrix.map(StoredMatrix::Mlx).ok_or_else(|| self.bad("has tensors of other sizes or types than MLX writes"))
    }

    /// [MXFP4](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf): floats of 4
    /// bits, the lower half of a byte first, and for each 32 of them the exponent of a scale. They become ggml's
    /// blocks, whose lower halves are the first 16.
    fn mxfp4(&self, codes: &str, scales: &str) -> Result<RowMatrix<'static>> {
        let (rows, columns) = (self.rows, self.columns);
        if !columns.is_multiple_of(32) {
            return Err(self.bad(&format!("has {columns} columns; MXFP4's blocks are of 32")));
        }
        let (codes, scales) = (self.bytes(codes, columns / 2)?, self.bytes(scales, columns / 32)?);
        let mut bytes = vec![0; codes.len() + scales.len()];
        let blocks = bytes.as_chunks_mut::<17>().0.iter_mut().zip(codes.as_chunks::<16>().0);
        for (([to, pairs @ ..], from), scale) in blocks.zip(scales) {
            *to = scale;
            let (first, last) = from.split_at(8);
            for (pair, (first, last)) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(first.iter().zip(last)) {
                *pair = [first & 15 | last << 4, first >> 4 | last & 0xf0];
            }
        }
        Ok(RowMatrix {
            rows,
            columns,
            encoding: Encoding::Ggml(GgmlType::MXFP4),
            bytes: TensorBytes::Owned(bytes),
            precise: true,
        })
    }

    /// The bytes of a tensor of whole numbers, as many for each row.
    fn bytes(&self, name: &str, per_row: usize) -> Result<Vec<u8>> {
        let tensor = self.checkpoint.tensor(name)?;
        let whole = matches!(tensor.encoding, Encoding::Dense(DType::U8 | DType::U32));
        match whole && self.rows.checked_mul(per_row) == Some(tensor.bytes.len()) {
            true => tensor.bytes.read(),
            false => Err(self.bad_tensor(name, &tensor)),
        }
    }

    /// The bits of a code, and the columns that share a scale.
    fn bits_and_group(&self) -> Result<(usize, usize)> {
        let config = self.checkpoint.config.opt_object("quantization_config")?;
        let config = config.ok_or_else(|| self.bad("is quantized, and there is no quantization_config"))?;
        let bits_key = if config.get("bits").is_some() { "bits" } else { "w_bit" };
        let bits = config.size(bits_key)?;
        if !matches!(bits, 2 | 4 | 8) {
            return Err(config.bad(bits_key, "2, 4 and 8 bits are supported"));
        }
        // -1 is all columns.
        let group_key = if config.get("group_size").is_some() { "group_size" } else { "q_group_size" };
        let group = match config.opt_f64(group_key)? {
            Some(size) if size < 0.0 => self.columns,
            _ => config.size(group_key)?,
        };
        if !self.columns.is_multiple_of(group) || !self.columns.is_multiple_of(32 / bits) {
            return Err(config.bad(group_key, &format!("does not divide {} columns", self.columns)));
        }
        Ok((bits, group))
    }

    /// Scales and offsets by rows from `[groups, rows]` of scales and zero points, to each of which `plus` is added.
    fn factors(&self, groups: usize, zeros: impl Fn(usize, usize) -> u32, plus: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        let scales = self.tensor("scales")?;
        if *scales.shape != [groups, self.rows] {
            return Err(self.bad_shape("scales", &scales));
        }
        let stored = scales.values(&self.parameter("scales"))?;
        let of = |row: usize, group: usize| stored[group * self.rows + row];
        let cells = || (0..self.rows).flat_map(move |row| (0..groups).map(move |group| (row, group)));
        let scales = cells().map(|(row, group)| of(row, group)).collect();
        let offset = |(row, group)| -of(row, group) * (zeros(row, group) as f32 + plus);
        Ok((scales, cells().map(offset).collect()))
    }

    /// [GPTQ](https://arxiv.org/abs/2210.17323): words hold codes of neighboring columns, and zero points of
    /// neighboring rows. `g_idx` says which group a column belongs to.
    fn gptq(&self) -> Result<Affine> {
        let (bits, group) = self.bits_and_group()?;
        let (rows, columns, per_word) = (self.rows, self.columns, 32 / bits);
        let (groups, mask) = (columns / group, (1u32 << bits) - 1);
        if !rows.is_multiple_of(per_word) {
            return Err(self.bad(&format!("has {rows} rows; {per_word} are packed together")));
        }
        let words = self.words("qweight", columns / per_word, rows)?;
        let zero_words = self.words("qzeros", groups, rows / per_word)?;
        let code =
            |row: usize, column: usize| words[column / per_word * rows + row] >> (column % per_word * bits) & mask;
        let zero = |row: usize, group: usize| {
            zero_words[group * (rows / per_word) + row / per_word] >> (row % per_word * bits) & mask
        };
        let config = self.checkpoint.config.opt_object("quantization_config")?;
        let format = config.as_ref().map(|config| config.opt_str("checkpoint_format")).transpose()?.flatten();
        // The first format stores zero points less one.
        let plus = if format == Some("gptq_v2") { 0.0 } else { 1.0 };
        let (scales, offsets) = self.factors(groups, zero, plus)?;
        let order = self.gptq_order(group)?;
        let arranged: Vec<usize> = match &order {
            Some(order) => order.iter().map(|column| *column as usize).collect(),
            None => (0..columns).collect(),
        };
        let codes = (0..rows).flat_map(|row| arranged.iter().map(move |column| (row, *column)));
        let codes = codes.map(|(row, column)| code(row, column) as u8).collect();
        Ok(Affine { rows, columns, bits: bits as u32, group, codes, scales, offsets, order })
    }

    /// The columns group by group, if `g_idx` has them in another order.
    fn gptq_order(&self, group: usize) -> Result<Option<Vec<u32>>> {
        if !self.contains("g_idx") {
            return Ok(None);
        }
        let groups = self.words("g_idx", 1, self.columns)?;
        if groups.iter().enumerate().all(|(column, of)| *of as usize == column / group) {
            return Ok(None);
        }
        let mut order: Vec<u32> = (0..self.columns as u32).collect();
        order.sort_by_key(|column| groups[*column as usize]);
        let even = order.iter().enumerate().all(|(at, column)| groups[*column as usize] as usize == at / group);
        if even { Ok(Some(order)) } else { Err(self.bad(&format!("has a g_idx with groups that are not of {group}"))) }
    }

    /// [AWQ](https://arxiv.org/abs/2306.00978): words hold codes, and zero points, of neighboring rows.
    fn awq(&self) -> Result<Affine> {
        let (bits, group) = self.bits_and_group()?;
        let (rows, columns) = (self.rows, self.columns);
        let config = self.checkpoint.config.opt_object("quantization_config")?;
        if let Some(config) = &config
            && let Some(version) = config.opt_str("version")?
            && !version.eq_ignore_ascii_case("gemm")
        {
            return Err(config.bad("version", "of AWQ's layouts gemm is supported"));
        }
        if bits != 4 || !rows.is_multiple_of(8) {
            return Err(self.bad(&format!("has {rows} rows of {bits} bits; AWQ packs 8 rows of 4")));
        }
        let groups = columns / group;
        let words = self.words("qweight", columns, rows / 8)?;
        let zero_words = self.words("qzeros", groups, rows / 8)?;
        let code = |words: &[u32], line: usize, row: usize| {
            words[line * (rows / 8) + row / 8] >> (4 * AWQ_ORDER[row % 8]) & 15
        };
        let (scales, offsets) = self.factors(groups, |row, group| code(&zero_words, group, row), 0.0)?;
        let cells = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let codes = cells.map(|(row, column)| code(&words, column, row) as u8).collect();
        Ok(Affine { rows, columns, bits: 4, group, codes, scales, offsets, order: None })
    }

    /// Floats of 8 bits with a scale for all, for each row, or for each block. They become floats of 16 bits, which
    /// hold them to 11 bits where the stored ones have 4.
    fn fp8(&self) -> Result<RowMatrix<'static>> {
        let (rows, columns) = (self.rows, self.columns);
        let weight = self.tensor("weight")?;
        if *weight.shape != [rows, columns] {
            return Err(self.bad_shape("weight", &weight));
        }
        let key = ["weight_scale_inv", "weight_scale"].into_iter().find(|key| self.contains(key));
        let key = key.ok_or_else(|| self.bad("has floats of 8 bits and no weight_scale or weight_scale_inv"))?;
        let tensor = self.tensor(key)?;
        let (high, wide) = match *tensor.shape {
            [] | [1] | [1, 1] => (rows, columns),
            [n] | [n, 1] if n == rows => (1, columns),
            [down, across] => {
                let (high, wide) = self.fp8_block()?;
                if (down, across) != (rows.div_ceil(high), columns.div_ceil(wide)) {
                    return Err(self.bad_shape(key, &tensor));
                }
                (high, wide)
            }
            _ => return Err(self.bad_shape(key, &tensor)),
        };
        let across = columns.div_ceil(wide);
        let scales = self.values(key, rows.div_ceil(high) * across)?;
        let mut bytes = Vec::with_capacity(2 * weight.bytes.len());
        for (at, byte) in weight.bytes.read()?.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let scaled = e4m3(*byte) * scales[row / high * across + column / wide];
            bytes.extend(f16::from_f32(scaled).to_le_bytes());
        }
        Ok(RowMatrix {
            rows,
            columns,
            encoding: Encoding::Dense(DType::F16),
            bytes: TensorBytes::Owned(bytes),
            precise: false,
        })
    }

    fn fp8_block(&self) -> Result<(usize, usize)> {
        let config = self.checkpoint.config.opt_object("quantization_config")?;
        let block = config.as_ref().map(|config| config.ids("weight_block_size")).transpose()?.unwrap_or_default();
        match *block {
            [high, wide] if high > 0 && wide > 0 => Ok((high as usize, wide as usize)),
            _ => Ok((128, 128)),
        }
    }
}

/// A float of a sign, four bits of an exponent and three of a fraction.
fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    // As the same bits of a 16-bit float, whose exponents begin 8 lower.
    f16::from_bits(u16::from(byte & 0x80) << 8 | u16::from(byte & 0x7f) << 7).to_f32() * 256.0
}
