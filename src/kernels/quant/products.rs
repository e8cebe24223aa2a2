//! Products of quantized matrices: activations are quantized in the blocks of the weights, integer dot products
//! computed in each block, and scaled sums of these added up in f32.

use std::borrow::Cow;

use super::{
    activations::{WORK, quantization_errors},
    ggml::QuantFormat,
    matrix::QuantMatrix,
};
use crate::kernels::{
    Isa,
    arch::quantized::multiply_panels,
    dense::transposed,
    elementwise::{Activation, activate_row},
    layout::{
        activations::{GROUP, QuantRows},
        codes::{CodeFormat, EightBits, FiveBits, FourBitTable, FourBits, ROWS, SixBits},
    },
    threads::{
        current_num_threads,
        parallel::for_chunks_mut,
        strips::{Strip, Strips, written},
    },
};

/// Strips for each thread, many so that all threads finish at about the same time.
const STRIPS: usize = 16;
/// Rows of a strip of gated products, at most: gates of all tokens are kept until they are multiplied.
const GATED_ROWS: usize = 128;
impl QuantMatrix {
    /// `x Wᵀ`: `x` is `[tokens, columns]`, the result `[tokens, rows]`.
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
        // The error of rounding each row is another row, whose own error is far smaller.
        let mut rows = x.to_vec();
        for_chunks_mut(&mut rows, self.columns, |_, x| quantization_errors(x, isa));
        let both = [&x, &rows[..]].concat();
        let [mut out] = multiply_rounded([self], &both, isa);
        let rest = out.split_off(out.len() / 2);
        out.iter_mut().zip(rest).for_each(|(out, rest)| *out += rest);
        out
    }

    /// Writes the products of all tokens with the rows of the matrix that are the strip's columns.
    fn multiply_strip(&self, x: &QuantRows, isa: Isa, out: &mut Strip<'_>) {
        let QuantFormat { nibbles, higher, table, block, .. } = self.format;
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

    /// `x W`: `x` is `[tokens, rows]`, the result `[tokens, columns]`. If `rounded`, both are rounded to bfloat16.
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
}

/// The products of several matrices, whose numbers of columns are equal, with the same activations.
pub fn multiply_all<const N: usize>(matrices: [&QuantMatrix; N], x: &[f32], isa: Isa) -> [Vec<f32>; N] {
    match matrices.iter().any(|matrix| matrix.precise || matrix.order.is_some()) {
        true => matrices.map(|matrix| matrix.multiply(x, isa)),
        false => multiply_rounded(matrices, x, isa),
    }
}

/// As [`multiply_all`], with activations rounded to 8 bits.
fn multiply_rounded<const N: usize>(matrices: [&QuantMatrix; N], x: &[f32], isa: Isa) -> [Vec<f32>; N] {
    let rounded = SharedActivations::new(matrices, x, isa);
    let tokens = x.len() / matrices[0].columns;
    let width = strip_width(matrices, tokens);
    let strips = matrices.map(|matrix| Strips { columns: matrix.rows, width });
    written(tokens, strips, |i, strip| matrices[i].multiply_strip(rounded.of(i), isa, strip))
}

/// `activation(gate x) * up x` for matrices `[gate, up]` of the same shape. `None` if their products must be computed
/// apart.
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

/// Rows of a strip.
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

/// Activations for several matrices, quantized once for all formats that need the same codes.
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
