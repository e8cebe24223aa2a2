//! Products with the transposes of weight matrices, which take gradients back through linear maps.

use rayon::prelude::*;

use super::{
    Isa,
    panels::{LANES, Product},
    team,
};

/// Rows of weights that are unpacked at a time.
const BLOCK_ROWS: usize = 256;
/// Panels of columns, and tokens, that a thread takes at a time.
const STRIP_PANELS: usize = 4;
const STRIP_TOKENS: usize = 48;

/// A weight matrix, `[rows, columns]`, whose pieces can be unpacked.
pub trait Unpack: Sync {
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    /// Writes columns `panel * LANES..` of the rows from `first` on, `out.len()` of them, as far as there are columns.
    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]]);
}

/// `x W`: from `[tokens, rows]` to `[tokens, columns]`.
pub fn multiply<W: Unpack + ?Sized>(x: &[f32], weights: &W, isa: Isa) -> Vec<f32> {
    let (rows, columns) = (weights.rows(), weights.columns());
    let (tokens, panels) = (x.len() / rows, columns.div_ceil(LANES));
    let (strips, width) = (panels.div_ceil(STRIP_PANELS), STRIP_PANELS * LANES);
    let mut by_strip = vec![0f32; strips * tokens * width];
    let mut unpacked = vec![[0f32; LANES]; panels * BLOCK_ROWS.min(rows)];
    for first in (0..rows).step_by(BLOCK_ROWS) {
        let steps = BLOCK_ROWS.min(rows - first);
        let unpacked = &mut unpacked[..panels * steps];
        unpacked.par_chunks_mut(steps).enumerate().for_each(|(panel, out)| weights.unpack(first, panel, out));
        let strips = unpacked.par_chunks(STRIP_PANELS * steps);
        by_strip.par_chunks_mut(tokens * width).zip(strips).for_each(|(sums, strip)| {
            let panels: Vec<&[f32]> = strip.chunks(steps).map(<[_]>::as_flattened).collect();
            sums.par_chunks_mut(STRIP_TOKENS * width).enumerate().for_each(|(part, sums)| {
                let token = part * STRIP_TOKENS;
                let product = Product {
                    factors: &x[token * rows + first..],
                    factor_stride: rows,
                    rows: sums.len() / width,
                    steps,
                    panels: &panels,
                    panel_stride: LANES,
                };
                product.add_to(sums, width, isa);
            });
        });
    }
    from_strips(&by_strip, tokens, columns, width)
}

/// Puts strips of `width` columns, `[strips, tokens, width]`, side by side: `[tokens, columns]`.
pub fn from_strips(by_strip: &[f32], tokens: usize, columns: usize, width: usize) -> Vec<f32> {
    let mut out = vec![0f32; tokens * columns];
    team::for_chunks_mut(&mut out, columns, |token, out| {
        for (strip, out) in out.chunks_mut(width).enumerate() {
            out.copy_from_slice(&by_strip[(strip * tokens + token) * width..][..out.len()]);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{affine::Affine, ggml::GgmlType, quantized::QuantMatrix};

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn quantised_matrices_take_back_what_their_rows_say() {
        let affine = |bits, rows: usize, columns: usize| {
            let mut affine = Affine::quantized(&noise(rows * columns, 1), rows, columns, bits);
            affine.order = Some((0..columns as u32).map(|column| (column * 37 + 5) % columns as u32).collect());
            QuantMatrix::from_affine(&affine, true)
        };
        // Scales are a quarter.
        let floats: Vec<u8> = (0..20 * 3 * 17).map(|i| if i % 17 == 0 { 125 } else { (i * 89 % 251) as u8 }).collect();
        let floats = QuantMatrix::from_ggml(GgmlType::MXFP4, &floats, 20, 96, true);
        for matrix in [affine(4, 5, 64), affine(8, 300, 96), floats] {
            let (rows, columns) = (matrix.rows, matrix.columns);
            let x = noise(3 * rows, 2);
            for isa in Isa::available() {
                let y = matrix.multiply_transposed(&x, isa);
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
