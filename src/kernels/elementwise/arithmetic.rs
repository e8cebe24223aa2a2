//! Sums and bounds of values.

use super::{
    math::tanh,
    rows::{ROW_LEN, changed_rows, for_rows},
};
use crate::kernels::{Isa, multiversion::multiversion};

/// `x + scale * y`, element by element.
pub fn add(x: &[f32], y: &[f32], scale: f32, isa: Isa) -> Vec<f32> {
    changed_rows(x, ROW_LEN, |row, out| add_row(out, &y[row * ROW_LEN..], scale, isa))
}

/// Adds `y` to `x`, element by element.
pub fn add_to(x: &mut [f32], y: &[f32], isa: Isa) {
    for_rows(x, ROW_LEN, |row, x| add_row(x, &y[row * ROW_LEN..], 1.0, isa));
}

/// Multiplies by `scale`, then bounds by [`cap`] if there is a `softcap`.
pub fn scale_and_cap(x: &mut [f32], scale: f32, softcap: Option<f32>, isa: Isa) {
    for_rows(x, ROW_LEN, |_, x| {
        x.iter_mut().for_each(|x| *x *= scale);
        if let Some(softcap) = softcap {
            cap(x, softcap, isa);
        }
    });
}

multiversion! {
    fn add_row(x: &mut [f32], y: &[f32], scale: f32) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x = y.mul_add(scale, *x));
    }

    /// Bounds values smoothly: `softcap * tanh(x / softcap)`.
    pub fn cap(x: &mut [f32], softcap: f32) {
        x.iter_mut().for_each(|x| *x = softcap * tanh(*x / softcap));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{
        elementwise::testing::{assert_near, same_on_every_path},
        noise,
    };

    #[test]
    fn sums_and_caps_are_the_formulas_and_every_path_gives_the_same_bits() {
        let (rows, width) = (40, 576);
        let (x, y) = (noise(rows * width, 1, 5.0), noise(rows * width, 2, 5.0));
        let sums = same_on_every_path(width, |isa, rows| add(&x[..rows * width], &y, 0.25, isa), rows);
        assert_near(&sums, x.iter().zip(&y).map(|(x, y)| f64::from(*x) + 0.25 * f64::from(*y)));
        let mut capped = x.clone();
        scale_and_cap(&mut capped, 2.0, Some(3.0), Isa::detect());
        assert_near(&capped, x.iter().map(|x| 3.0 * (f64::from(*x) * 2.0 / 3.0).tanh()));
    }
}
