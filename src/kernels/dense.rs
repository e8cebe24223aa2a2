//! Products with matrices that are not quantised, in the type they are stored in.

use super::{
    Isa,
    panels::{Element, ElementType, Elements, LANES, Product, with_elements},
    team,
    transposed::{Unpack, from_strips},
};

/// Panels that a thread takes at a time.
const STRIP_PANELS: usize = 4;
const STRIP_ROWS: usize = STRIP_PANELS * LANES;
/// Tokens that a thread takes through a strip at a time.
const STRIP_TOKENS: usize = 48;

/// A matrix, `[rows, columns]`, in panels of [`LANES`] rows: `[rows / LANES, columns, LANES]`.
pub struct DenseMatrix {
    pub rows: usize,
    pub columns: usize,
    /// Rows that fill up the last panel are zeros.
    elements: Elements,
}

impl DenseMatrix {
    /// A matrix whose rows are `bytes`, little endian.
    pub fn new(kind: ElementType, bytes: &[u8], rows: usize, columns: usize) -> Self {
        let elements = match kind {
            ElementType::F32 => Elements::F32(panels(bytes, rows, columns)),
            ElementType::F16 => Elements::F16(panels(bytes, rows, columns)),
            ElementType::Bf16 => Elements::Bf16(panels(bytes, rows, columns)),
        };
        Self { rows, columns, elements }
    }

    /// A matrix of `rows` rows out of bands that have them one after another, all but the last as many and whole panels.
    /// Bands are asked for as they are needed, so that little is there twice.
    pub fn of_bands(rows: usize, bands: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut bands = bands.into_iter();
        let mut this = bands.next()?;
        this.elements.reserve(rows.div_ceil(this.rows.max(1)) - 1);
        for band in bands {
            this.rows += band.rows;
            this.elements.append(band.elements);
        }
        Some(this)
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.elements.bytes()
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let panel = row / LANES * LANES * self.columns;
        let at = |column: usize| panel + column * LANES + row % LANES;
        with_elements!(&self.elements, elements => (0..self.columns).map(|c| elements[at(c)].to_f32()).collect())
    }

    /// `x Wᵀ`: from `[tokens, columns]` to `[tokens, rows]`.
    pub fn multiply(&self, x: &[f32], isa: Isa) -> Vec<f32> {
        with_elements!(&self.elements, elements => self.multiply_by(elements, x, isa))
    }

    fn multiply_by<T: Element>(&self, elements: &[T], x: &[f32], isa: Isa) -> Vec<f32> {
        let tokens = x.len() / self.columns;
        // By strips first, so that threads write to pieces of their own.
        let mut by_strip = vec![0f32; self.rows.div_ceil(STRIP_ROWS) * STRIP_ROWS * tokens];
        let strips: Vec<&[T]> = elements.chunks(STRIP_ROWS * self.columns).collect();
        team::for_chunks_mut(&mut by_strip, STRIP_ROWS * tokens, |strip, sums| {
            let panels: Vec<&[T]> = strips[strip].chunks(LANES * self.columns).collect();
            let x = x.chunks(STRIP_TOKENS * self.columns);
            sums.chunks_mut(STRIP_TOKENS * STRIP_ROWS).zip(x).for_each(|(sums, x)| {
                let product = Product {
                    factors: x,
                    factor_stride: self.columns,
                    rows: x.len() / self.columns,
                    steps: self.columns,
                    panels: &panels,
                    panel_stride: LANES,
                };
                product.add_to(sums, STRIP_ROWS, isa);
            });
        });
        if tokens == 1 {
            by_strip.truncate(self.rows);
            return by_strip;
        }
        from_strips(&by_strip, tokens, self.rows, STRIP_ROWS)
    }
}

impl Unpack for DenseMatrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]]) {
        fn unpack<T: Element>(
            matrix: &DenseMatrix,
            elements: &[T],
            first: usize,
            panel: usize,
            out: &mut [[f32; LANES]],
        ) {
            let columns = panel * LANES..matrix.columns.min((panel + 1) * LANES);
            for (row, out) in (first..).zip(out) {
                let lanes = &elements[row / LANES * LANES * matrix.columns..][..LANES * matrix.columns];
                for (column, out) in columns.clone().zip(out) {
                    *out = lanes[column * LANES + row % LANES].to_f32();
                }
            }
        }
        with_elements!(&self.elements, elements => unpack(self, elements, first, panel, out));
    }
}

/// Rows that lie one after another, in panels.
fn panels<T: Element>(bytes: &[u8], rows: usize, columns: usize) -> Vec<T> {
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

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use half::{bf16, f16};

    use super::*;
    use crate::kernels::transposed;

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// Noise as a matrix of each type.
    fn matrices(rows: usize, columns: usize) -> Vec<DenseMatrix> {
        let noise = noise(rows * columns, 1);
        let wide: Vec<u8> = noise.iter().flat_map(|value| value.to_le_bytes()).collect();
        let half: Vec<u8> = noise.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let brain: Vec<u8> = noise.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        let stored = [(ElementType::F32, wide), (ElementType::F16, half), (ElementType::Bf16, brain)];
        stored.into_iter().map(|(kind, bytes)| DenseMatrix::new(kind, &bytes, rows, columns)).collect()
    }

    #[test]
    fn every_path_is_the_formula_and_gives_the_same_bits() {
        for (rows, columns) in [(1, 1), (3, 6), (16, 37), (65, 100), (150, 576)] {
            for matrix in matrices(rows, columns) {
                let x = noise(50 * columns, 2);
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
    fn rows_are_those_that_were_stored() {
        let expected = noise(21 * 10, 1);
        let matrix = &matrices(21, 10)[0];
        for (row, expected) in expected.chunks(10).enumerate() {
            assert_eq!(matrix.row(row), expected);
        }
    }

    #[test]
    fn transposed_products_are_the_formula_and_give_the_same_bits() {
        for (rows, columns) in [(1, 1), (3, 6), (37, 16), (300, 65), (576, 100)] {
            for matrix in matrices(rows, columns) {
                let x = noise(50 * rows, 2);
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
    fn bands_are_the_matrix() {
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
