//! Rotary position embedding ([RoFormer](https://arxiv.org/abs/2104.09864)).

use super::rows::changed_rows;
use crate::kernels::{Isa, multiversion::multiversion};

/// The two values of a head that a rotation takes as a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// A value of the first half of the rotated ones, and its counterpart in the second half.
    NeoX,
    /// Two neighbors.
    Interleaved,
}

/// The angles of a batch's rows.
#[derive(Clone, Copy)]
pub struct RotationAngles<'a> {
    pub head_dim: usize,
    /// `[rows, pairs]`. Values of a head beyond `2 * pairs` stay as they are.
    pub cos: &'a [f32],
    /// `[rows, pairs]`.
    pub sin: &'a [f32],
    pub style: RopeStyle,
}

/// Rotates the heads of `x`, whose rows are `width` wide: `[rows, heads, head_dim]`.
pub fn rotate(x: &[f32], width: usize, rotation: RotationAngles<'_>, isa: Isa) -> Vec<f32> {
    let RotationAngles { cos, sin, .. } = rotation;
    let pairs = cos.len() * width / x.len();
    changed_rows(x, width, |row, out| {
        let (cos, sin) = (&cos[row * pairs..][..pairs], &sin[row * pairs..][..pairs]);
        rotate_heads(out, RotationAngles { cos, sin, ..rotation }, isa);
    })
}

multiversion! {
    /// Rotates the heads of one row.
    fn rotate_heads(heads: &mut [f32], rotation: RotationAngles<'_>) {
        let RotationAngles { head_dim, cos, sin, style } = rotation;
        for head in heads.chunks_exact_mut(head_dim) {
            let turn = |a: &mut f32, b: &mut f32, (cos, sin): (&f32, &f32)| {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            };
            let turns = cos.iter().zip(sin);
            match style {
                RopeStyle::NeoX => {
                    let (first, second) = head.split_at_mut(cos.len());
                    first.iter_mut().zip(second).zip(turns).for_each(|((a, b), by)| turn(a, b, by));
                }
                RopeStyle::Interleaved => {
                    head.as_chunks_mut().0.iter_mut().zip(turns).for_each(|([a, b], by)| turn(a, b, by));
                }
            }
        }
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
    fn both_styles_are_the_formula_and_every_path_gives_the_same_bits() {
        // Of the 8 values of a head 6 are rotated.
        let (rows, width, head_dim, pairs) = (40, 48, 8, 3);
        let (x, cos, sin) = (noise(rows * width, 1, 5.0), noise(rows * pairs, 4, 5.0), noise(rows * pairs, 5, 5.0));
        for style in [RopeStyle::NeoX, RopeStyle::Interleaved] {
            let turn = |isa, rows: usize| {
                let rotation = RotationAngles { head_dim, cos: &cos[..rows * pairs], sin: &sin[..rows * pairs], style };
                rotate(&x[..rows * width], width, rotation, isa)
            };
            let ours = same_on_every_path(width, turn, rows);
            let exact = (0..x.len()).map(|i| {
                let (row, within, of) = (i / width, i % head_dim, |i: usize| f64::from(x[i]));
                let (pair, partner, first) = match style {
                    _ if within >= 2 * pairs => return of(i),
                    RopeStyle::NeoX if within < pairs => (within, i + pairs, true),
                    RopeStyle::NeoX => (within - pairs, i - pairs, false),
                    RopeStyle::Interleaved => (within / 2, i ^ 1, within % 2 == 0),
                };
                let (cos, sin) = (f64::from(cos[row * pairs + pair]), f64::from(sin[row * pairs + pair]));
                if first { of(i) * cos - of(partner) * sin } else { of(partner) * sin + of(i) * cos }
            });
            assert_near(&ours, exact);
        }
    }
}
