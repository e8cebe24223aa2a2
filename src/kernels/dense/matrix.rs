//! Dense matrices in panels, in the type of their file.

use std::borrow::Cow;

use half::f16;

use super::{
    rounding::{RoundedRows, is_tall, rounded, rounded_tall},
    transposed::Unpack,
};
use crate::kernels::{
    Isa,
    arch::bf16::{multiply_tall, pair_rows, widen},
    layout::{
        bf16::{Bf16Factor, Bf16Product, PairLine, widened_pair},
        element::{Element, ElementType},
        panels::{LANES, PanelProduct, Panels},
    },
    memory::WeightBuffer,
    threads::strips::{MatrixTile, Strips, summed, written},
};

/// Panels of a strip, which a thread takes at a time.
const STRIP_PANELS: usize = 4;
const STRIP_ROWS: usize = STRIP_PANELS * LANES;
/// Tokens that go through a strip at a time.
const STRIP_TOKENS: usize = 48;

/// A matrix, `[rows, columns]`, in panels of [`LANES`] rows.
pub struct DenseMatrix {
    pub rows: usize,
    pub columns: usize,
    weights: DenseWeights,
}

/// Weights by type. Rows that pad the last panel and a column that pads the last pair are zeros.
enum DenseWeights {
    /// `[rows / LANES, columns, LANES]`
    F32(WeightBuffer<f32>),
    F16(WeightBuffer<f16>),
    /// `[rows / LANES, columns / 2]`
    Bf16(WeightBuffer<PairLine>),
}

/// Evaluates an expression for the weights of any type.
macro_rules! with_weights {
    ($weights:expr, $typed:ident => $result:expr) => {
        match $weights {
            DenseWeights::F32($typed) => $result,
            DenseWeights::F16($typed) => $result,
            DenseWeights::Bf16($typed) => $result,
        }
    };
}

impl DenseMatrix {
    /// Packs a matrix from its rows in little-endian bytes.
    pub fn new(kind: ElementType, bytes: &[u8], rows: usize, columns: usize) -> Self {
        let weights = match kind {
            ElementType::F32 => DenseWeights::F32(WeightBuffer::Heap(panels_of(bytes, rows, columns))),
            ElementType::F16 => DenseWeights::F16(WeightBuffer::Heap(panels_of(bytes, rows, columns))),
            ElementType::Bf16 => DenseWeights::Bf16(WeightBuffer::Heap(lines_of(bytes, rows, columns))),
        };
        Self { rows, columns, weights }
    }

    /// Puts a matrix of `rows` rows together out of consecutive bands. All bands but the last have equal numbers of
    /// rows, which are whole panels. Bands are taken one by one, so that few weights are in memory twice. `None`
    /// without bands.
    pub fn of_bands(rows: usize, bands: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut bands = bands.into_iter().peekable();
        let first = bands.peek()?;
        let (panels, theirs) = (rows.div_ceil(LANES), first.rows.div_ceil(LANES).max(1));
        let weights = match &first.weights {
            DenseWeights::F32(those) => DenseWeights::F32(WeightBuffer::for_panels(panels, those, theirs)),
            DenseWeights::F16(those) => DenseWeights::F16(WeightBuffer::for_panels(panels, those, theirs)),
            DenseWeights::Bf16(those) => DenseWeights::Bf16(WeightBuffer::for_panels(panels, those, theirs)),
        };
        let mut this = Self { rows: 0, columns: first.columns, weights };
        for band in bands {
            this.rows += band.rows;
            match (&mut this.weights, &band.weights) {
                (DenseWeights::F32(weights), DenseWeights::F32(after)) => weights.append(after),
                (DenseWeights::F16(weights), DenseWeights::F16(after)) => weights.append(after),
                (DenseWeights::Bf16(weights), DenseWeights::Bf16(after)) => weights.append(after),
                _ => debug_assert!(false, "weights of two types"),
            }
        }
        Some(this)
    }

    /// The size of the weights in bytes.
    pub fn bytes(&self) -> usize {
        with_weights!(&self.weights, weights => size_of_val::<[_]>(weights))
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let (panel, lane) = (row / LANES, row % LANES);
        fn of_lane<T: Element>(panels: &[T], (panel, lane): (usize, usize), columns: usize) -> Vec<f32> {
            let panel = &panels[panel * columns * LANES..][..columns * LANES];
            panel.iter().skip(lane).step_by(LANES).map(|weight| weight.to_f32()).collect()
        }
        match &self.weights {
            DenseWeights::F32(panels) => of_lane(panels, (panel, lane), self.columns),
            DenseWeights::F16(panels) => of_lane(panels, (panel, lane), self.columns),
            DenseWeights::Bf16(lines) => {
                let pairs = self.columns.div_ceil(2);
                let mut row: Vec<f32> =
                    lines[panel * pairs..][..pairs].iter().flat_map(|line| widened_pair(line.0[lane])).collect();
                row.truncate(self.columns);
                row
            }
        }
    }

    /// `x Wᵀ`: `x` is `[tokens, columns]`, the result `[tokens, rows]`.
    pub fn multiply(&self, x: &[f32], isa: Isa) -> Vec<f32> {
        match &self.weights {
            DenseWeights::F32(panels) => self.multiply_by(panels, x, isa),
            DenseWeights::F16(panels) => self.multiply_by(panels, x, isa),
            DenseWeights::Bf16(lines) => {
                let width = self.columns.next_multiple_of(2);
                let x = if width == self.columns { Cow::Borrowed(x) } else { Cow::Owned(widened(x, self.columns)) };
                self.multiply_lines(lines, &x, isa)
            }
        }
    }

    /// As [`multiply`](Self::multiply), with activations rounded to bfloat16 if the weights have that type: twice as
    /// fast on machines with instructions for it.
    pub fn multiply_rounded(&self, x: &[f32], isa: Isa) -> Vec<f32> {
        let DenseWeights::Bf16(lines) = &self.weights else { return self.multiply(x, isa) };
        let tokens = x.len() / self.columns;
        match tokens {
            ..=8 if is_tall(tokens, isa) => return self.multiply_tall::<8>(lines, x, isa),
            _ if is_tall(tokens, isa) => return self.multiply_tall::<16>(lines, x, isa),
            _ => {}
        }
        match rounded(x, self.columns, isa) {
            #[cfg(target_arch = "x86_64")]
            RoundedRows::Packed(x) => self.multiply_lines(lines, &x, isa),
            RoundedRows::Widened(x) => self.multiply_lines(lines, &x, isa),
        }
    }

    fn multiply_lines<F: Bf16Factor>(&self, lines: &[PairLine], x: &[F], isa: Isa) -> Vec<f32> {
        let pairs = self.columns.div_ceil(2);
        let width = pairs * F::PER_PAIR;
        self.by_strips((lines, pairs), (x, width), |panels, factors, sums| {
            let rows = factors.len() / width;
            let product = Bf16Product { factors, factor_stride: width, rows, pairs, panels };
            product.add_to(sums, STRIP_ROWS, isa);
        })
    }

    /// As [`multiply_rounded`](Self::multiply_rounded), `T` tokens at a time through each panel.
    fn multiply_tall<const T: usize>(&self, lines: &[PairLine], x: &[f32], isa: Isa) -> Vec<f32> {
        let (pairs, tokens) = (self.columns.div_ceil(2), x.len() / self.columns);
        let x = rounded_tall::<T>(x, self.columns, isa);
        let [products] = written(tokens, [Strips { columns: self.rows, width: STRIP_ROWS }], |_, strip| {
            let panels = lines.chunks(pairs).skip(strip.columns.start / LANES);
            for panel in panels.take(strip.columns.len().div_ceil(LANES)) {
                for (x, first) in x.chunks(pairs).zip((0..).step_by(T)) {
                    strip.push(&multiply_tall::<T>(panel, x, isa)[..T.min(tokens - first)]);
                }
            }
        });
        products
    }

    fn multiply_by<T: Element>(&self, weights: &[T], x: &[f32], isa: Isa) -> Vec<f32> {
        let columns = self.columns;
        self.by_strips((weights, columns * LANES), (x, columns), |panels, factors, sums| {
            let (rows, steps) = (factors.len() / columns, columns);
            let product = PanelProduct {
                factors,
                factor_stride: columns,
                rows,
                panels: Panels::Apart(panels),
                steps,
                panel_stride: LANES,
            };
            product.add_to(sums, STRIP_ROWS, isa);
        })
    }

    /// The loop of all products: calls `multiply(panels, factors, sums)` for each strip and some tokens at a time. A
    /// panel has `panel` elements of `weights`, and a token `width` factors.
    fn by_strips<W: Sync, F: Sync>(
        &self,
        (weights, panel): (&[W], usize),
        (factors, width): (&[F], usize),
        multiply: impl Fn(&[&[W]], &[F], &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let strips = Strips { columns: self.rows, width: STRIP_ROWS };
        summed(factors.len() / width, strips, STRIP_TOKENS, |MatrixTile { rows, columns }, sums| {
            let panels = columns.start / LANES..columns.end.div_ceil(LANES);
            let panels: Vec<&[W]> = panels.map(|at| &weights[at * panel..][..panel]).collect();
            multiply(&panels, &factors[rows.start * width..rows.end * width], sums);
        })
    }
}

impl Unpack for DenseMatrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]], isa: Isa) {
        match &self.weights {
            DenseWeights::F32(panels) => self.unpack_panels(panels, first, panel, out),
            DenseWeights::F16(panels) => self.unpack_panels(panels, first, panel, out),
            DenseWeights::Bf16(_) => {
                for (rows, out) in (first..).step_by(LANES).zip(out.chunks_mut(LANES)) {
                    widen(self.lines(rows, panel), out, isa);
                }
            }
        }
    }

    fn unpack_pairs(&self, first: usize, panel: usize, out: &mut [PairLine], isa: Isa) {
        if !matches!(self.weights, DenseWeights::Bf16(_)) {
            return self.unpack_rounded(first, panel, out, isa);
        }
        for (rows, out) in (first..).step_by(LANES).zip(out.chunks_mut(LANES / 2)) {
            pair_rows(self.lines(rows, panel), out, isa);
        }
    }
}

impl DenseMatrix {
    fn unpack_panels<T: Element>(&self, panels: &[T], first: usize, panel: usize, out: &mut [[f32; LANES]]) {
        let columns = panel * LANES..self.columns.min((panel + 1) * LANES);
        for (row, out) in (first..).zip(out) {
            let lanes = &panels[row / LANES * LANES * self.columns..][..LANES * self.columns];
            for (column, out) in columns.clone().zip(out) {
                *out = lanes[column * LANES + row % LANES].to_f32();
            }
        }
    }

    /// The lines of a panel of columns, in the panel of rows that begins with `row`; none unless weights are bfloat16.
    fn lines(&self, row: usize, panel: usize) -> &[PairLine] {
        let DenseWeights::Bf16(lines) = &self.weights else { return &[] };
        let pairs = self.columns.div_ceil(2);
        let lines = &lines[row / LANES * pairs..][..pairs];
        &lines[panel * LANES / 2..pairs.min((panel + 1) * LANES / 2)]
    }
}

/// Packs rows into panels.
fn panels_of<T: Element>(bytes: &[u8], rows: usize, columns: usize) -> Vec<T> {
    let mut panels = vec![T::zeroed(); rows.next_multiple_of(LANES) * columns];
    let rows: Vec<&[u8]> = bytes.chunks_exact(columns * size_of::<T>()).collect();
    panels.chunks_mut(LANES * columns).zip(rows.chunks(LANES)).for_each(|(panel, rows)| {
        for (lane, row) in rows.iter().enumerate() {
            for (column, bytes) in row.chunks_exact(size_of::<T>()).enumerate() {
                panel[column * LANES + lane] = T::from_le_bytes(bytes);
            }
        }
    });
    panels
}

/// Packs rows of bfloat16 into lines.
fn lines_of(bytes: &[u8], rows: usize, columns: usize) -> Vec<PairLine> {
    let pairs = columns.div_ceil(2);
    let mut lines = vec![PairLine::ZERO; rows.div_ceil(LANES) * pairs];
    for (row, bytes) in bytes.chunks_exact(2 * columns).enumerate() {
        for (line, bytes) in lines[row / LANES * pairs..].iter_mut().zip(bytes.chunks(4)) {
            let mut pair = [0; 4];
            pair[..bytes.len()].copy_from_slice(bytes);
            line.0[row % LANES] = u32::from_le_bytes(pair);
        }
    }
    lines
}

/// Rows padded with a zero after an odd last column.
fn widened(x: &[f32], columns: usize) -> Vec<f32> {
    x.chunks(columns).flat_map(|x| x.iter().copied().chain([0.0])).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use half::f16;

    use super::*;
    use crate::kernels::{dense::transposed, noise};

    /// Noise as a matrix of each type.
    fn matrices(rows: usize, columns: usize) -> Vec<DenseMatrix> {
        let noise = noise(rows * columns, 1, 1.0);
        let wide: Vec<u8> = noise.iter().flat_map(|value| value.to_le_bytes()).collect();
        let half: Vec<u8> = noise.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let bf16: Vec<u8> = noise.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        let stored = [(ElementType::F32, wide), (ElementType::F16, half), (ElementType::Bf16, bf16)];
        stored.into_iter().map(|(kind, bytes)| DenseMatrix::new(kind, &bytes, rows, columns)).collect()
    }

    #[test]
    fn every_path_is_the_formula_and_gives_the_same_bits() {
        for (rows, columns) in [(1, 1), (3, 6), (16, 37), (65, 100), (150, 576)] {
            for matrix in matrices(rows, columns) {
                let x = noise(50 * columns, 2, 1.0);
                let scalar = matrix.multiply(&x, Isa::Scalar);
                for (x, y) in x.chunks(columns).zip(scalar.chunks(rows)) {
                    for (row, y) in y.iter().enumerate() {
                        let products = matrix.row(row).into_iter().zip(x);
                        let exact: f64 = products.map(|(weight, x)| f64::from(weight) * f64::from(*x)).sum();
                        assert!((f64::from(*y) - exact).abs() < 1e-6 * columns as f64, "{y} {exact}");
                    }
                }
                for isa in Isa::available() {
                    assert_eq!(matrix.multiply(&x, isa), scalar, "{isa:?}");
                    for tokens in 1..8 {
                        let some = matrix.multiply(&x[columns..][..tokens * columns], isa);
                        assert_eq!(some, scalar[rows..][..tokens * rows], "{isa:?}, {tokens} tokens");
                    }
                }
            }
        }
    }

    #[test]
    fn rounded_products_are_the_formula_and_give_the_same_bits_in_every_batch() {
        for (rows, columns) in [(1, 1), (3, 6), (16, 37), (65, 100), (150, 576)] {
            for matrix in matrices(rows, columns) {
                let x = noise(50 * columns, 2, 1.0);
                let scalar = matrix.multiply_rounded(&x, Isa::Scalar);
                for (x, y) in x.chunks(columns).zip(scalar.chunks(rows)) {
                    for (row, y) in y.iter().enumerate() {
                        let products = matrix.row(row).into_iter().zip(x);
                        let exact: f64 = products.map(|(weight, x)| f64::from(weight) * f64::from(*x)).sum();
                        assert!((f64::from(*y) - exact).abs() < 2e-3 * (columns as f64).sqrt(), "{y} {exact}");
                    }
                }
                for isa in Isa::available() {
                    assert_eq!(matrix.multiply_rounded(&x, isa), scalar, "{isa:?}");
                    for tokens in (1..8).chain([9, 16, 17, 33]) {
                        let some = matrix.multiply_rounded(&x[columns..][..tokens * columns], isa);
                        assert_eq!(some, scalar[rows..][..tokens * rows], "{isa:?}, {tokens} tokens");
                    }
                }
            }
        }
    }

    #[test]
    fn rounded_transposed_products_are_near_the_exact_ones() {
        for (rows, columns) in [(1, 1), (3, 6), (37, 16), (300, 65), (576, 100)] {
            for matrix in matrices(rows, columns) {
                let x = noise(50 * rows, 2, 1.0);
                let exact = transposed::multiply(&x, &matrix, Isa::detect());
                let scalar = transposed::multiply_rounded(&x, &matrix, Isa::Scalar);
                for (y, exact) in scalar.iter().zip(&exact) {
                    assert!((y - exact).abs() < 4e-3 * (rows as f32).sqrt(), "{y} {exact}");
                }
                for isa in Isa::available() {
                    assert_eq!(transposed::multiply_rounded(&x, &matrix, isa), scalar, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn rows_are_the_packed_ones() {
        let expected = noise(21 * 10, 1, 1.0);
        let matrix = &matrices(21, 10)[0];
        for (row, expected) in expected.chunks(10).enumerate() {
            assert_eq!(matrix.row(row), expected);
        }
    }

    #[test]
    fn transposed_products_are_the_formula_and_give_the_same_bits() {
        for (rows, columns) in [(1, 1), (3, 6), (37, 16), (300, 65), (576, 100)] {
            for matrix in matrices(rows, columns) {
                let x = noise(50 * rows, 2, 1.0);
                let scalar = transposed::multiply(&x, &matrix, Isa::Scalar);
                for (x, y) in x.chunks(rows).zip(scalar.chunks(columns)) {
                    let mut exact = vec![0f64; columns];
                    for (row, x) in x.iter().enumerate() {
                        let products = matrix.row(row).into_iter().map(|weight| f64::from(weight) * f64::from(*x));
                        exact.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
                    }
                    for (y, exact) in y.iter().zip(exact) {
                        assert!((f64::from(*y) - exact).abs() < 1e-6 * rows as f64, "{y} {exact}");
                    }
                }
                for isa in Isa::available() {
                    assert_eq!(transposed::multiply(&x, &matrix, isa), scalar, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn bands_make_up_the_matrix() {
        for whole in matrices(75, 10) {
            let part = |rows: Range<usize>| {
                let bytes = rows.flat_map(|row| whole.row(row)).flat_map(f32::to_le_bytes).collect::<Vec<_>>();
                DenseMatrix::new(ElementType::F32, &bytes, bytes.len() / 40, 10)
            };
            let joined = DenseMatrix::of_bands(75, [0..32, 32..64, 64..75].map(part)).unwrap();
            assert_eq!((joined.rows, joined.columns), (75, 10));
            assert!((0..75).all(|row| joined.row(row) == whole.row(row)));
        }
    }
}
