//! Products with quantised matrices: weights in blocks with a scale and an offset, activations
//! quantised to 8 bits in the same blocks, integer dot products between them.
//!
//! Weights are kept in panels of 16 rows, in the order in which kernels read them: the lanes of a
//! vector are rows, so that nothing is ever summed across lanes.

use std::borrow::Cow;

use half::f16;

use super::{
    activations::{WORK, keep_what_rounding_loses},
    affine::Affine,
    ggml::{Format, GgmlBlock, GgmlType},
    packing::BlockFactors,
};
use crate::kernels::{
    Isa,
    arch::quantized::multiply_panels,
    dense::transposed::{self, Unpack},
    elementwise::{Activation, activate_row},
    layout::{
        activations::{GROUP, QuantRows},
        codes::{
            CodeFormat, CodeLine, EightBits, FiveBits, FourBitTable, FourBits, PanelFactors, QuantPanel, ROWS, SixBits,
        },
        panels::LANES,
    },
    memory::WeightBuffer,
    threads::{
        current_num_threads,
        parallel::{Strip, Strips, for_chunks_mut, written},
    },
};

/// Strips of a matrix for each thread, so that all end together.
const STRIPS: usize = 16;
/// Rows of a gate and of what it opens for, at most, that go through all tokens before they are put together.
const GATED_ROWS: usize = 128;
/// Weights in a block of those that are not ggml's.
const AFFINE_BLOCK: usize = 32;

/// A matrix, `[rows, columns]`, of codes with `weight = scale * (code - bias) + offset` in each block.
pub struct QuantMatrix {
    pub rows: usize,
    pub columns: usize,
    format: Format,
    /// QuantPanel by panel, group by group.
    codes: WeightBuffer<CodeLine>,
    /// Their higher bits, panel by panel.
    higher: WeightBuffer<CodeLine>,
    scales: BlockFactors,
    offsets: Option<BlockFactors>,
    /// The column of the activations that belongs to each column here, if they are in another order.
    order: Option<Vec<u32>>,
    /// Whether activations keep 16 bits and not 8.
    precise: bool,
}

impl QuantMatrix {
    /// Takes over a matrix in one of ggml's formats.
    ///
    /// `bytes` are the rows as ggml stores them; each row is whole blocks. If `precise`, products keep 16 bits of the
    /// activations.
    pub fn from_ggml(kind: GgmlType, bytes: &[u8], rows: usize, columns: usize, precise: bool) -> Self {
        let mut this = Self { precise, ..Self::zeros(Format::of(kind), rows, columns) };
        let blocks = columns / this.format.stored;
        for (row, bytes) in bytes.chunks_exact(blocks * kind.block_bytes()).enumerate() {
            for (i, bytes) in bytes.chunks_exact(kind.block_bytes()).enumerate() {
                let stored = GgmlBlock::read(kind, bytes);
                this.put(row, i, &stored.codes, (stored.scale, &stored.scales), (stored.offset, &stored.offsets));
            }
        }
        this
    }

    /// Whether `from_affine` takes such a matrix: it can be cut into blocks.
    pub fn takes(matrix: &Affine) -> bool {
        matrix.columns.is_multiple_of(AFFINE_BLOCK) && matrix.group.is_multiple_of(AFFINE_BLOCK)
    }

    /// Takes over a matrix of another origin. If `precise`, products keep 16 bits of the activations: so compute those who
    /// made it.
    pub fn from_affine(matrix: &Affine, precise: bool) -> Self {
        let block = AFFINE_BLOCK;
        // What shares a scale is kept together if that is a power of two.
        let stored = if (matrix.group / block).is_power_of_two() { matrix.group } else { block };
        let stored = stored.min(256);
        let nibbles = matrix.bits <= 6;
        let higher = if nibbles { (matrix.bits as usize).saturating_sub(4) } else { 0 };
        // Around the middle offsets are small, and so lose little in 16 bits.
        let bias = 1u8 << (matrix.bits - 1);
        let format = Format { nibbles, higher, table: None, bias, block, stored, offsets: true };
        let mut this = Self::zeros(format, matrix.rows, matrix.columns);
        (this.order, this.precise) = (matrix.order.clone(), precise);
        [Some(&mut this.scales), this.offsets.as_mut()].into_iter().flatten().for_each(BlockFactors::without_multiples);
        for row in 0..matrix.rows {
            for (i, codes) in matrix.codes(row).chunks_exact(stored).enumerate() {
                let (scale, offset) = matrix.factors(row, i * stored / matrix.group);
                let offset = scale.mul_add(f32::from(bias), offset);
                this.put(row, i, codes, (f16::from_f32(scale), &[]), (f16::from_f32(offset), &[]));
            }
        }
        this
    }

    /// A matrix without codes.
    fn zeros(format: Format, rows: usize, columns: usize) -> Self {
        let panels = rows.div_ceil(ROWS);
        let factors = || BlockFactors::new(format, panels * columns);
        Self {
            rows,
            columns,
            format,
            codes: WeightBuffer::Heap(vec![CodeLine([0; ROWS * GROUP]); panels * format.lines(columns)]),
            higher: WeightBuffer::Heap(vec![CodeLine([0; ROWS * GROUP]); panels * format.higher_lines(columns)]),
            scales: factors(),
            offsets: format.offsets.then(factors),
            order: None,
            precise: false,
        }
    }

    /// Writes the weights that are stored together, `i` of them from the beginning of a row.
    fn put(&mut self, row: usize, i: usize, codes: &[u8], scale: (f16, &[i8]), offset: (f16, &[i8])) {
        let (format, panel, lane) = (self.format, row / ROWS, row % ROWS);
        let len = format.lines(self.columns);
        let lines = &mut self.codes[panel * len..][..len];
        let len = format.higher_lines(self.columns);
        let higher = &mut self.higher[panel * len..][..len];
        format.put(lines, higher, (lane, i * format.stored), &codes[..format.stored]);
        let at = panel * (self.columns / format.stored) + i;
        self.scales.put(at, lane, scale.0, scale.1);
        if let Some(offsets) = &mut self.offsets {
            offsets.put(at, lane, offset.0, offset.1);
        }
    }

    /// A matrix of `rows` rows out of bands that have them one after another, all but the last as many and whole panels.
    /// Bands are asked for as they are needed, so that little is there twice.
    pub fn of_bands(rows: usize, bands: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut bands = bands.into_iter().peekable();
        let first = bands.peek()?;
        let (panels, theirs) = (rows.div_ceil(ROWS), first.rows.div_ceil(ROWS).max(1));
        let factors = |those: &BlockFactors| BlockFactors::for_panels(panels, those, theirs);
        let mut this = Self {
            rows: 0,
            columns: first.columns,
            format: first.format,
            codes: WeightBuffer::for_panels(panels, &first.codes, theirs),
            higher: WeightBuffer::for_panels(panels, &first.higher, theirs),
            scales: factors(&first.scales),
            offsets: first.offsets.as_ref().map(factors),
            order: first.order.clone(),
            precise: first.precise,
        };
        bands.for_each(|band| this.append(&band));
        Some(this)
    }

    fn append(&mut self, after: &Self) {
        debug_assert!(self.rows.is_multiple_of(ROWS) && self.columns == after.columns);
        self.rows += after.rows;
        self.codes.append(&after.codes);
        self.higher.append(&after.higher);
        self.scales.append(&after.scales);
        if let (Some(offsets), Some(after)) = (&mut self.offsets, &after.offsets) {
            offsets.append(after);
        }
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        let codes = size_of_val(&*self.codes) + size_of_val(&*self.higher);
        codes + self.scales.bytes() + self.offsets.as_ref().map_or(0, BlockFactors::bytes)
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let (panel, lane) = (self.panel(row / ROWS), row % ROWS);
        let values = |factors: PanelFactors<'_>| -> Vec<f32> {
            (0..self.columns / self.format.block).map(|block| factors.lanes(block)[lane]).collect()
        };
        let scales = values(panel.scales);
        let offsets = panel.offsets.map(values);
        let value = |column| {
            let block = column / self.format.block;
            let code = i32::from(self.format.get(panel.codes, panel.higher, lane, column)) - i32::from(panel.bias);
            let value = code as f32 * scales[block];
            offsets.as_ref().map_or(value, |offsets| value + offsets[block])
        };
        match &self.order {
            None => (0..self.columns).map(value).collect(),
            Some(order) => {
                let mut row = vec![0.0; self.columns];
                order.iter().enumerate().for_each(|(column, to)| row[*to as usize] = value(column));
                row
            }
        }
    }

    /// `x W`: from `[tokens, rows]` to `[tokens, columns]`, in bfloat16 if it is to be `rounded`.
    pub fn multiply_transposed(&self, x: &[f32], rounded: bool, isa: Isa) -> Vec<f32> {
        let y = match rounded {
            true => transposed::multiply_rounded(x, self, isa),
            false => transposed::multiply(x, self, isa),
        };
        let Some(order) = &self.order else { return y };
        let mut arranged = vec![0f32; y.len()];
        for (to, y) in arranged.chunks_mut(self.columns).zip(y.chunks(self.columns)) {
            order.iter().zip(y).for_each(|(column, y)| to[*column as usize] = *y);
        }
        arranged
    }

    fn panel(&self, panel: usize) -> QuantPanel<'_> {
        self.panel_of(panel, self.columns / self.format.block)
    }

    /// As `panel`, if it is known how many blocks a row has: there are many panels, and divisions are slow.
    #[inline(always)]
    fn panel_of(&self, panel: usize, blocks: usize) -> QuantPanel<'_> {
        let lines = self.format.lines(self.columns);
        let higher = self.format.higher_lines(self.columns);
        QuantPanel {
            codes: &self.codes[panel * lines..][..lines],
            higher: &self.higher[panel * higher..][..higher],
            table: self.format.table,
            bias: self.format.bias,
            scales: self.scales.panel(panel, blocks),
            offsets: self.offsets.as_ref().map(|offsets| offsets.panel(panel, blocks)),
        }
    }

    /// `x Wᵀ`: from `[tokens, columns]` to `[tokens, rows]`.
    pub fn multiply(&self, x: &[f32], isa: Isa) -> Vec<f32> {
        let x = match &self.order {
            None => Cow::Borrowed(x),
            Some(order) => {
                let arranged = x.chunks(self.columns).flat_map(|x| order.iter().map(|column| x[*column as usize]));
                Cow::Owned(arranged.collect())
            }
        };
        if !self.precise {
            return multiply_rounded([self], &x, isa).into_iter().next().unwrap_or_default();
        }
        // What rounding takes away is another row, and so is rounded far less.
        let mut rows = x.to_vec();
        for_chunks_mut(&mut rows, self.columns, |_, x| keep_what_rounding_loses(x, isa));
        let both = [&x, &rows[..]].concat();
        let [mut out] = multiply_rounded([self], &both, isa);
        let rest = out.split_off(out.len() / 2);
        out.iter_mut().zip(rest).for_each(|(out, rest)| *out += rest);
        out
    }

    /// Writes all tokens' products with the rows that are the strip's columns.
    fn multiply_strip(&self, x: &QuantRows, isa: Isa, out: &mut Strip<'_>) {
        let Format { nibbles, higher, table, block, .. } = self.format;
        match (nibbles, table.is_some(), higher, block / GROUP) {
            (_, true, ..) => self.multiply_strip_as::<FourBitTable, 8>(x, isa, out),
            (true, _, 0, 4) => self.multiply_strip_as::<FourBits, 4>(x, isa, out),
            (true, _, 0, _) => self.multiply_strip_as::<FourBits, 8>(x, isa, out),
            (true, _, 1, _) => self.multiply_strip_as::<FiveBits, 8>(x, isa, out),
            (true, _, _, 4) => self.multiply_strip_as::<SixBits, 4>(x, isa, out),
            (true, _, _, _) => self.multiply_strip_as::<SixBits, 8>(x, isa, out),
            (false, ..) => self.multiply_strip_as::<EightBits, 8>(x, isa, out),
        }
    }

    fn multiply_strip_as<C: CodeFormat, const GROUPS: usize>(&self, x: &QuantRows, isa: Isa, out: &mut Strip<'_>) {
        x.prefetch();
        let panels = out.columns.start / ROWS..out.columns.end.div_ceil(ROWS);
        multiply_panels::<C, GROUPS>(
            isa,
            panels,
            |panel| self.panel_of(panel, x.blocks()),
            x,
            |products| out.push(products),
        );
    }
}

/// What several matrices of as many columns make of the same activations.
pub fn multiply_all<const N: usize>(matrices: [&QuantMatrix; N], x: &[f32], isa: Isa) -> [Vec<f32>; N] {
    match matrices.iter().any(|matrix| matrix.precise || matrix.order.is_some()) {
        true => matrices.map(|matrix| matrix.multiply(x, isa)),
        false => multiply_rounded(matrices, x, isa),
    }
}

/// As `multiply_all`, with activations in 8 bits.
fn multiply_rounded<const N: usize>(matrices: [&QuantMatrix; N], x: &[f32], isa: Isa) -> [Vec<f32>; N] {
    let rounded = SharedActivations::new(matrices, x, isa);
    let tokens = x.len() / matrices[0].columns;
    let width = strip_width(matrices, tokens);
    let strips = matrices.map(|matrix| Strips { columns: matrix.rows, width });
    written(tokens, strips, |i, strip| matrices[i].multiply_strip(rounded.of(i), isa, strip))
}

/// `activation(gate x) * up x`, of matrices of the same shape. `None` if only their own products can be computed.
pub fn multiply_gated(matrices: [&QuantMatrix; 2], x: &[f32], activation: Activation, isa: Isa) -> Option<Vec<f32>> {
    let [gate, up] = matrices;
    if matrices.iter().any(|matrix| matrix.precise || matrix.order.is_some()) || gate.rows != up.rows {
        return None;
    }
    let rounded = SharedActivations::new(matrices, x, isa);
    let tokens = x.len() / gate.columns;
    let width = (strip_width(matrices, tokens) / 2).min(GATED_ROWS).next_multiple_of(ROWS);
    let [out] = written(tokens, [Strips { columns: gate.rows, width }], |_, strip| {
        let [mut gates, ups] = [0, 1].map(|of| {
            Strip::alone(tokens, strip.columns.clone(), |alone| matrices[of].multiply_strip(rounded.of(of), isa, alone))
        });
        activate_row(&mut gates, Some(&ups), activation, isa);
        strip.write(&gates);
    });
    Some(out)
}

/// Rows of matrices that a thread takes at a time.
fn strip_width<const N: usize>(matrices: [&QuantMatrix; N], tokens: usize) -> usize {
    let threads = current_num_threads();
    let rows: usize = matrices.iter().map(|matrix| matrix.rows).sum();
    let work = rows * matrices[0].columns * tokens / WORK;
    let strips = match threads {
        1 => 1,
        _ if work < threads => work.max(1),
        _ => threads * (work / threads).min(STRIPS),
    };
    rows.div_ceil(strips).next_multiple_of(ROWS)
}

/// Activations, quantised once for all matrices that want the same of them.
struct SharedActivations<const N: usize> {
    rows: Vec<QuantRows>,
    of: [usize; N],
}

impl<const N: usize> SharedActivations<N> {
    fn new(matrices: [&QuantMatrix; N], x: &[f32], isa: Isa) -> Self {
        let mut rows: Vec<QuantRows> = Vec::with_capacity(N);
        let of = matrices.map(|matrix| {
            rows.iter().position(|rows| rows.is_for(matrix.format)).unwrap_or_else(|| {
                rows.push(QuantRows::quantize(x, matrix.columns, matrix.format, isa));
                rows.len() - 1
            })
        });
        Self { rows, of }
    }

    fn of(&self, matrix: usize) -> &QuantRows {
        &self.rows[self.of[matrix]]
    }
}

/// In the order in which columns are held.
impl Unpack for QuantMatrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]], _: Isa) {
        // A block is as long as a panel, or longer.
        let block = panel * LANES / self.format.block;
        for (rows, out) in (first..).step_by(ROWS).zip(out.chunks_mut(ROWS)) {
            let held = self.panel(rows / ROWS);
            let scales = held.scales.lanes(block);
            let offsets = held.offsets.map_or([0.0; ROWS], |offsets| offsets.lanes(block));
            for (lane, out) in out.iter_mut().enumerate() {
                for (column, out) in (panel * LANES..).zip(out) {
                    let code = i32::from(self.format.get(held.codes, held.higher, lane, column)) - i32::from(held.bias);
                    *out = (code as f32).mul_add(scales[lane], offsets[lane]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{
        Device, Tensor,
        quantized::{QStorage, QTensor},
    };

    use super::*;

    /// Those that candle knows, too.
    const FORMATS: [GgmlType; 10] = [
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2_K,
        GgmlType::Q3_K,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    fn random(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 40
        }
    }

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut next = random(seed);
        (0..len).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// A matrix of random bits, but of sane scales, and its values by candle, if that knows the type.
    fn matrix(dtype: GgmlType, rows: usize, columns: usize) -> (QuantMatrix, Vec<f32>) {
        let mut next = random(7);
        let mut bytes: Vec<u8> =
            (0..rows * columns / dtype.block_len() * dtype.block_bytes()).map(|_| next() as u8).collect();
        let halves: &[usize] = match dtype {
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
            GgmlType::Q2_K => &[80, 82],
            GgmlType::Q3_K => &[108],
            GgmlType::Q6_K => &[208],
            _ => &[0],
        };
        for block in bytes.chunks_mut(dtype.block_bytes()) {
            for at in halves {
                let half = f16::from_f32(next() as f32 / (1 << 31) as f32 - 0.003);
                block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
            if dtype == GgmlType::Q8_0 {
                block[2..18].fill(0x80);
            }
        }
        let matrix = QuantMatrix::from_ggml(dtype, &bytes, rows, columns, false);
        let Some(kind) = dtype.candle() else { return (matrix, Vec::new()) };
        let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind).unwrap();
        let stored = QTensor::new(storage, (rows, columns)).unwrap();
        (matrix, stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn rows_are_what_candle_makes_of_them() {
        for dtype in FORMATS {
            let (rows, columns) = (21, 512);
            let (matrix, exact) = matrix(dtype, rows, columns);
            for row in 0..rows {
                for (ours, theirs) in matrix.row(row).iter().zip(&exact[row * columns..]) {
                    assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{dtype:?}: {ours} {theirs}");
                }
            }
        }
    }

    #[test]
    fn bands_are_the_matrix() {
        for dtype in FORMATS {
            let columns = 512;
            let bands = || [32, 32, 11].map(|rows| matrix(dtype, rows, columns).0);
            let joined = QuantMatrix::of_bands(75, bands()).unwrap();
            let rows: Vec<_> = bands().iter().flat_map(|band| (0..band.rows).map(|row| band.row(row))).collect();
            assert!(rows.iter().enumerate().all(|(row, expected)| joined.row(row) == *expected), "{dtype:?}");
            let x = noise(columns, 3);
            let products: Vec<f32> = bands().iter().flat_map(|band| band.multiply(&x, Isa::detect())).collect();
            assert_eq!(joined.multiply(&x, Isa::detect()), products, "{dtype:?}");
        }
    }

    #[test]
    fn what_candle_quantises_is_near_what_it_was() {
        let (rows, columns) = (3, 256);
        let values = noise(rows * columns, 13);
        for dtype in FORMATS {
            let tensor = Tensor::from_slice(&values, (rows, columns), &Device::Cpu).unwrap();
            let stored = QTensor::quantize(&tensor, dtype.candle().unwrap()).unwrap();
            let matrix = QuantMatrix::from_ggml(dtype, &stored.data().unwrap(), rows, columns, false);
            let ours: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
            assert!(ours.iter().zip(&values).all(|(ours, value)| (ours - value).abs() < 0.4), "{dtype:?}");
        }
    }

    #[test]
    fn products_are_near_exact_ones() {
        for dtype in FORMATS {
            let (rows, columns, tokens) = (37, 512, 6);
            let (matrix, exact) = matrix(dtype, rows, columns);
            let x = noise(tokens * columns, 9);
            let ours = matrix.multiply(&x, Isa::detect());
            for (token, x) in x.chunks(columns).enumerate() {
                for (row, weights) in exact.chunks(columns).enumerate() {
                    let (got, expected) = (f64::from(ours[token * rows + row]), dot(weights, x));
                    let scale = (dot(weights, weights) * dot(x, x)).sqrt();
                    assert!((got - expected).abs() < 0.01 * scale, "{dtype:?}: {got} for {expected} of {scale}");
                }
            }
        }
    }

    /// A matrix of random codes in groups of 64, whose columns are in another order.
    fn affine(bits: u32, rows: usize, columns: usize) -> Affine {
        let mut next = random(u64::from(bits));
        let mut numbers = |len: usize, width: f32| -> Vec<f32> {
            (0..len)
                .map(|_| (next() as f32 / (1 << 24) as f32 - 0.5) * width)
                .map(|n| f16::from_f32(n).to_f32())
                .collect()
        };
        let (scales, offsets) = (numbers(rows * columns / 64, 0.01), numbers(rows * columns / 64, 0.1));
        let codes = (0..rows * columns).map(|_| (next() & ((1 << bits) - 1)) as u8).collect();
        let order = (0..columns as u32).map(|column| (column * 37 + 5) % columns as u32).collect();
        Affine { rows, columns, bits, group: 64, codes, scales, offsets, order: Some(order) }
    }

    #[test]
    fn precise_products_are_exact_to_16_bits_on_every_path_in_every_batch() {
        for bits in [2, 3, 4, 6, 8] {
            let (rows, columns, tokens) = (37, 320, 6);
            let affine = affine(bits, rows, columns);
            let matrix = QuantMatrix::from_affine(&affine, true);
            let exact = affine.to_f32();
            for row in 0..rows {
                let weights = &exact[row * columns..][..columns];
                assert!(matrix.row(row).iter().zip(weights).all(|(ours, w)| (ours - w).abs() < 3e-4));
            }
            let x = noise(tokens * columns, 9);
            let ours = matrix.multiply(&x, Isa::detect());
            for (token, x) in x.chunks(columns).enumerate() {
                for row in 0..rows {
                    let weights = matrix.row(row);
                    let (got, expected) = (f64::from(ours[token * rows + row]), dot(&weights, x));
                    let scale = (dot(&weights, &weights) * dot(x, x)).sqrt();
                    assert!((got - expected).abs() < 3e-5 * scale, "{bits} bits: {got} for {expected} of {scale}");
                }
            }
            let alone: Vec<f32> = x.chunks(columns).flat_map(|token| matrix.multiply(token, Isa::Scalar)).collect();
            for isa in Isa::available() {
                assert_eq!(matrix.multiply(&x, isa), alone, "{bits} bits, {isa:?}");
            }
        }
    }

    #[test]
    fn what_is_quantised_here_is_near_what_it_was() {
        let (rows, columns) = (5, 96);
        let weights = noise(rows * columns, 3);
        for (bits, tolerance) in [(8, 0.005), (4, 0.075)] {
            let matrix = QuantMatrix::from_affine(&Affine::quantized(&weights, rows, columns, bits), false);
            let ours: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
            assert!(ours.iter().zip(&weights).all(|(ours, weight)| (ours - weight).abs() < tolerance), "{bits} bits");
        }
    }

    #[test]
    fn uneven_codes_and_floats_of_four_bits_are_looked_up() {
        let one = f16::ONE.to_le_bytes();
        let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let uneven =
            [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
        let both_ways = |values: [f32; 16]| [values.to_vec(), values.into_iter().rev().collect()].concat();
        let row = |kind, bytes: &[u8], columns| QuantMatrix::from_ggml(kind, bytes, 1, columns, false).row(0);
        assert_eq!(row(GgmlType::IQ4_NL, &[&one[..], &nibbles].concat(), 32), both_ways(uneven));
        let floats = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
        assert_eq!(row(GgmlType::MXFP4, &[&[127], &nibbles[..]].concat(), 32), both_ways(floats));
        let quarters: Vec<f32> = both_ways(floats).iter().map(|float| float / 4.0).collect();
        assert_eq!(row(GgmlType::MXFP4, &[&[125], &nibbles[..]].concat(), 32), quarters);
        // Scales of 6 bits, from 32 on above zero: the first block has 33, the second 48 and the last 31.
        let mut bytes = [&one[..], &[0b10 | 0b11 << 2, 0b01 << 6], &[0x01, 0, 0, 0xf0]].concat();
        (0..8).for_each(|_| bytes.extend(&nibbles));
        let blocks = row(GgmlType::IQ4_XS, &bytes, 256);
        let scaled = |scale: f32| both_ways(uneven).iter().map(|value| value * scale).collect::<Vec<_>>();
        assert_eq!(blocks[..32], scaled(1.0));
        assert_eq!(blocks[32..64], scaled(16.0));
        assert_eq!(blocks[224..], scaled(-1.0));
    }

    #[test]
    fn every_path_and_every_batch_gives_the_same_bits() {
        let uneven = [GgmlType::IQ4_NL, GgmlType::IQ4_XS, GgmlType::MXFP4];
        for dtype in FORMATS.into_iter().chain(uneven) {
            for (rows, tokens) in [(1, 1), (16, 2), (33, 3), (40, 8), (31, 15), (600, 33)] {
                let columns = 256;
                let (matrix, _) = matrix(dtype, rows, columns);
                let mut x = noise(tokens * columns, 11);
                // CodeFormat of ±127 only, against the extreme weights.
                x[..columns].iter_mut().for_each(|value| *value = value.signum());
                let alone: Vec<f32> = x.chunks(columns).flat_map(|token| matrix.multiply(token, Isa::Scalar)).collect();
                for isa in Isa::available() {
                    assert_eq!(matrix.multiply(&x, isa), alone, "{dtype:?} {isa:?} {rows} rows, {tokens} tokens");
                }
            }
        }
    }

    #[test]
    fn zeros_give_zeros_and_not_numbers_are_not_lost() {
        let (matrix, _) = matrix(GgmlType::Q8_0, 5, 64);
        for isa in Isa::available() {
            assert_eq!(matrix.multiply(&[0.0; 64], isa), [0.0; 5]);
            for value in [f32::NAN, f32::INFINITY] {
                let mut x = [1.0; 64];
                x[3] = value;
                assert!(matrix.multiply(&x, isa).iter().all(|y| !y.is_finite()), "{isa:?} {value}");
            }
        }
    }

    #[test]
    fn transposed_products_are_the_formula_of_the_rows() {
        let affine = |bits, rows: usize, columns: usize| {
            let mut affine = Affine::quantized(&crate::kernels::noise(rows * columns, 1, 1.0), rows, columns, bits);
            affine.order = Some((0..columns as u32).map(|column| (column * 37 + 5) % columns as u32).collect());
            QuantMatrix::from_affine(&affine, true)
        };
        // Scales are a quarter.
        let floats: Vec<u8> = (0..20 * 3 * 17).map(|i| if i % 17 == 0 { 125 } else { (i * 89 % 251) as u8 }).collect();
        let floats = QuantMatrix::from_ggml(GgmlType::MXFP4, &floats, 20, 96, true);
        for matrix in [affine(4, 5, 64), affine(8, 300, 96), floats] {
            let (rows, columns) = (matrix.rows, matrix.columns);
            let x = crate::kernels::noise(3 * rows, 2, 1.0);
            for isa in Isa::available() {
                let y = matrix.multiply_transposed(&x, false, isa);
                for (x, y) in x.chunks(rows).zip(y.chunks(columns)) {
                    let mut exact = vec![0f64; columns];
                    for (row, x) in x.iter().enumerate() {
                        let products = matrix.row(row).into_iter().map(|weight| f64::from(weight) * f64::from(*x));
                        exact.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
                    }
                    assert!(y.iter().zip(exact).all(|(y, exact)| (f64::from(*y) - exact).abs() < 1e-6 * rows as f64));
                }
            }
        }
    }
}
