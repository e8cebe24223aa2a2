//! Products of two matrices in row-major order, such as the activations and weights of an adapter in training.

use std::borrow::Cow;

use crate::kernels::{
    Isa,
    layout::panels::{LANES, PanelProduct, Panels},
    threads::strips::{MatrixTile, Strips, summed},
};

/// Columns and rows of a tile, which a thread computes at a time.
const STRIP_WIDTH: usize = 4 * LANES;
const STRIP_ROWS: usize = 48;

/// `plus + x y`: `x` is `[rows, steps]`, `y` is `[steps, columns]`, and `plus` and the result are `[rows, columns]`.
pub fn product(x: &[f32], (y, columns): (&[f32], usize), plus: Option<&[f32]>, isa: Isa) -> Vec<f32> {
    let (steps, stride) = (y.len() / columns, columns.next_multiple_of(LANES));
    let y = if stride == columns { Cow::Borrowed(y) } else { Cow::Owned(widened(y, columns, stride)) };
    let strips = Strips { columns, width: STRIP_WIDTH };
    summed(x.len() / steps, strips, STRIP_ROWS, |MatrixTile { rows, columns: of }, sums| {
        if let Some(plus) = plus {
            for (sums, plus) in sums.chunks_mut(STRIP_WIDTH).zip(plus[rows.start * columns..].chunks(columns)) {
                sums[..of.len()].copy_from_slice(&plus[of.clone()]);
            }
        }
        let (factors, rows) = (&x[rows.start * steps..], rows.len());
        let panels = Panels::Beside(of.len().div_ceil(LANES), &[&y[of.start..]]);
        PanelProduct { factors, factor_stride: steps, rows, panels, steps, panel_stride: stride }.add_to(
            sums,
            STRIP_WIDTH,
            isa,
        );
    })
}

/// The transpose of `x`, whose rows have `columns` values.
pub fn transpose(x: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| x.iter().skip(column).step_by(columns)).copied().collect()
}

/// Rows padded with zeros.
fn widened(x: &[f32], columns: usize, stride: usize) -> Vec<f32> {
    let mut wide = vec![0f32; x.len() / columns * stride];
    for (wide, x) in wide.chunks_mut(stride).zip(x.chunks(columns)) {
        wide[..columns].copy_from_slice(x);
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::noise;

    #[test]
    fn products_are_the_formula_and_every_path_gives_the_same_bits() {
        for (rows, steps, columns) in [(1, 1, 1), (3, 8, 80), (50, 33, 8), (8, 100, 130)] {
            let [x, y, plus] = [rows * steps, steps * columns, rows * columns].map(|len| noise(len, len, 1.0));
            let run = |plus, isa| product(&x, (&y, columns), plus, isa);
            let (sums, scalar) = (run(Some(&plus), Isa::Scalar), run(None, Isa::Scalar));
            for (i, (sum, product)) in sums.iter().zip(&scalar).enumerate() {
                let (x, y) = (x[i / columns * steps..].iter(), y[i % columns..].iter().step_by(columns));
                let exact: f64 = x.take(steps).zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                assert!((f64::from(*product) - exact).abs() < 1e-5, "{product} {exact}");
                assert!((f64::from(*sum) - exact - f64::from(plus[i])).abs() < 1e-5, "{sum} {exact}");
            }
            for isa in Isa::available() {
                assert_eq!((run(Some(&plus), isa), run(None, isa)), (sums.clone(), scalar.clone()), "{isa:?}");
            }
        }
        assert_eq!(transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
