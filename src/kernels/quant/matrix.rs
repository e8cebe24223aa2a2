//! Quantized matrices, packed into panels.

use half::f16;

use super::{
    affine::Affine,
    ggml::{GgmlType, QuantFormat},
    ggml_block::GgmlBlock,
    packing::BlockFactors,
};
use crate::kernels::{
    Isa,
    dense::transposed::Unpack,
    layout::{
        activations::GROUP,
        codes::{CodeLine, PanelFactors, QuantPanel, ROWS},
        panels::LANES,
    },
    memory::WeightBuffer,
};

/// Weights of a block of an [`Affine`] matrix.
const AFFINE_BLOCK: usize = 32;

/// A matrix, `[rows, columns]`. In each block `weight = scale * (code - bias) + offset`.
pub struct QuantMatrix {
    pub rows: usize,
    pub columns: usize,
    pub(super) format: QuantFormat,
    /// The low bits of codes, panel by panel and group by group.
    codes: WeightBuffer<CodeLine>,
    /// The higher bits of codes, panel by panel.
    higher: WeightBuffer<CodeLine>,
    scales: BlockFactors,
    offsets: Option<BlockFactors>,
    /// The column of the activations that belongs to each column of the matrix, if the order differs.
    pub(super) order: Option<Vec<u32>>,
    /// Whether activations are rounded to 16 bits, and not to 8.
    pub(super) precise: bool,
}

impl QuantMatrix {
    /// Packs a matrix of one of ggml's types.
    ///
    /// `bytes` are its rows as ggml stores them, each of whole blocks. If `precise`, products round activations to 16
    /// bits.
    pub fn from_ggml(kind: GgmlType, bytes: &[u8], rows: usize, columns: usize, precise: bool) -> Self {
        let mut this = Self { precise, ..Self::zeros(QuantFormat::of(kind), rows, columns) };
        let blocks = columns / this.format.stored;
        for (row, bytes) in bytes.chunks_exact(blocks * kind.block_bytes()).enumerate() {
            for (i, bytes) in bytes.chunks_exact(kind.block_bytes()).enumerate() {
                let stored = GgmlBlock::read(kind, bytes);
                this.put((row, i), &stored.codes, (stored.scale, &stored.scales), (stored.offset, &stored.offsets));
            }
        }
        this
    }

    /// Whether [`from_affine`](Self::from_affine) can pack the matrix: rows and groups are whole blocks.
    pub fn takes(matrix: &Affine) -> bool {
        matrix.columns.is_multiple_of(AFFINE_BLOCK) && matrix.group.is_multiple_of(AFFINE_BLOCK)
    }

    /// Packs an affine matrix. If `precise`, products round activations to 16 bits, as near to f16 activations as the
    /// matrix's authors used.
    pub fn from_affine(matrix: &Affine, precise: bool) -> Self {
        let block = AFFINE_BLOCK;
        // Blocks of a group share a scale if their number is a power of two.
        let stored = if (matrix.group / block).is_power_of_two() { matrix.group } else { block };
        let stored = stored.min(256);
        let nibbles = matrix.bits <= 6;
        let higher = if nibbles { (matrix.bits as usize).saturating_sub(4) } else { 0 };
        // With codes around zero offsets are small, and lose little in 16 bits.
        let bias = 1u8 << (matrix.bits - 1);
        let format = QuantFormat { nibbles, higher, table: None, bias, block, stored, offsets: true };
        let mut this = Self::zeros(format, matrix.rows, matrix.columns);
        (this.order, this.precise) = (matrix.order.clone(), precise);
        [Some(&mut this.scales), this.offsets.as_mut()].into_iter().flatten().for_each(BlockFactors::without_multiples);
        for row in 0..matrix.rows {
            for (i, codes) in matrix.codes(row).chunks_exact(stored).enumerate() {
                let (scale, offset) = matrix.factors(row, i * stored / matrix.group);
                let offset = scale.mul_add(f32::from(bias), offset);
                this.put((row, i), codes, (f16::from_f32(scale), &[]), (f16::from_f32(offset), &[]));
            }
        }
        this
    }

    /// A matrix of zero bits.
    fn zeros(format: QuantFormat, rows: usize, columns: usize) -> Self {
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

    /// Writes the weights that are stored together: group `i` of a row. Scales and offsets come with their multiples.
    fn put(&mut self, (row, i): (usize, usize), codes: &[u8], scale: (f16, &[i8]), offset: (f16, &[i8])) {
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

    /// Puts a matrix of `rows` rows together out of consecutive bands. All bands but the last have equal numbers of
    /// rows, which are whole panels. Bands are taken one by one, so that few weights are in memory twice. `None`
    /// without bands.
    pub fn of_bands(rows: usize, bands: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut bands = bands.into_iter().peekable();
        let first = bands.peek()?;
        let (panels, count) = (rows.div_ceil(ROWS), first.rows.div_ceil(ROWS).max(1));
        let for_panels = |factors: &BlockFactors| BlockFactors::for_panels(panels, factors, count);
        let mut this = Self {
            rows: 0,
            columns: first.columns,
            format: first.format,
            codes: WeightBuffer::for_panels(panels, &first.codes, count),
            higher: WeightBuffer::for_panels(panels, &first.higher, count),
            scales: for_panels(&first.scales),
            offsets: first.offsets.as_ref().map(for_panels),
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

    /// The size of the weights in bytes.
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

    /// A panel of [`ROWS`] rows.
    fn panel(&self, panel: usize) -> QuantPanel<'_> {
        self.panel_of(panel, self.columns / self.format.block)
    }

    /// As [`panel`](Self::panel), given the number of blocks of a row: there are many panels, and divisions are slow.
    #[inline(always)]
    pub fn panel_of(&self, panel: usize, blocks: usize) -> QuantPanel<'_> {
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
}

/// Columns are in the order of the codes.
impl Unpack for QuantMatrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]], _: Isa) {
        // Blocks are as wide as panels, or wider.
        let block = panel * LANES / self.format.block;
        for (rows, out) in (first..).step_by(ROWS).zip(out.chunks_mut(ROWS)) {
            let weights = self.panel(rows / ROWS);
            let scales = weights.scales.lanes(block);
            let offsets = weights.offsets.map_or([0.0; ROWS], |offsets| offsets.lanes(block));
            for (lane, out) in out.iter_mut().enumerate() {
                for (column, out) in (panel * LANES..).zip(out) {
                    let code = i32::from(self.format.get(weights.codes, weights.higher, lane, column))
                        - i32::from(weights.bias);
                    *out = (code as f32).mul_add(scales[lane], offsets[lane]);
                }
            }
        }
    }
}
