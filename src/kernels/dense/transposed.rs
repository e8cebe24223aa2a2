//! Products with the transposes of weight matrices, which take gradients back through linear maps.

use super::rounding::{RoundedRows, round_row, rounded};
use crate::kernels::{
    Isa,
    layout::{
        bf16::{Bf16Factor, Bf16Product, PairLine},
        panels::{LANES, PanelProduct, Panels},
    },
    threads::{
        current_num_threads,
        parallel::{Strips, summed},
    },
};

/// Rows of weights that are unpacked at a time.
const BLOCK_ROWS: usize = 256;
/// Panels of columns, and tokens, that a thread takes at a time.
const STRIP_PANELS: usize = 4;
const STRIP_WIDTH: usize = STRIP_PANELS * LANES;
const STRIP_TOKENS: usize = 48;
/// Pieces of a product for each thread.
const PIECES_EACH: usize = 8;

/// A weight matrix, `[rows, columns]`, whose pieces can be unpacked.
pub trait Unpack: Sync {
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    /// Writes columns `panel * LANES..` of the rows from `first` on, `out.len()` of them, as far as there are columns.
    /// `first` is the first row of a panel.
    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]], isa: Isa);

    /// As `unpack`, rounded to bfloat16, two rows a line. A row after the last one is zeros.
    fn unpack_pairs(&self, first: usize, panel: usize, out: &mut [PairLine], isa: Isa) {
        self.unpack_rounded(first, panel, out, isa);
    }

    /// `unpack_pairs` by `unpack`.
    fn unpack_rounded(&self, first: usize, panel: usize, out: &mut [PairLine], isa: Isa) {
        let rows = (2 * out.len()).min(self.rows() - first);
        let mut wide = vec![[0f32; LANES]; 2 * out.len()];
        self.unpack(first, panel, &mut wide[..rows], isa);
        for (line, rows) in out.iter_mut().zip(wide.as_chunks().0) {
            let [upper, lower]: &[[f32; LANES]; 2] = rows;
            let pairs: [[f32; 2]; LANES] = std::array::from_fn(|lane| [upper[lane], lower[lane]]);
            round_row(pairs.as_flattened(), &mut line.0, isa);
        }
    }
}

/// `x W`: from `[tokens, rows]` to `[tokens, columns]`.
pub fn multiply<W: Unpack + ?Sized>(x: &[f32], weights: &W, isa: Isa) -> Vec<f32> {
    let rows = weights.rows();
    let unpack = |first, panel, out: &mut [_]| weights.unpack(first, panel, out, isa);
    by_blocks((x, rows), weights, (BLOCK_ROWS, [0f32; LANES]), unpack, |panels, factors, sums| {
        let panels: Vec<&[f32]> = panels.iter().map(|panel| panel.as_flattened()).collect();
        let (steps, rows_of_sums) = (panels[0].len() / LANES, sums.len() / STRIP_WIDTH);
        let panels = Panels::Apart(&panels);
        PanelProduct { factors, factor_stride: rows, rows: rows_of_sums, panels, steps, panel_stride: LANES }.add_to(
            sums,
            STRIP_WIDTH,
            isa,
        );
    })
}

/// As `multiply`, with `x` and the weights rounded to bfloat16: twice as fast where there are instructions for it.
pub fn multiply_rounded<W: Unpack + ?Sized>(x: &[f32], weights: &W, isa: Isa) -> Vec<f32> {
    match rounded(x, weights.rows(), isa) {
        #[cfg(target_arch = "x86_64")]
        RoundedRows::Packed(x) => multiply_pairs(&x, weights, isa),
        RoundedRows::Widened(x) => multiply_pairs(&x, weights, isa),
    }
}

fn multiply_pairs<F: Bf16Factor>(x: &[F], weights: &(impl Unpack + ?Sized), isa: Isa) -> Vec<f32> {
    let width = weights.rows().div_ceil(2) * F::PER_PAIR;
    let unpack = |first, panel, out: &mut [_]| weights.unpack_pairs(2 * first, panel, out, isa);
    by_blocks((x, width), weights, (BLOCK_ROWS / 2, PairLine::ZERO), unpack, |panels, factors, sums| {
        let (pairs, rows) = (panels[0].len(), sums.len() / STRIP_WIDTH);
        Bf16Product { factors, factor_stride: width, rows, pairs, panels }.add_to(sums, STRIP_WIDTH, isa);
    })
}

/// Of each strip of columns unpacks `block` of the weights' steps at a time, `unpack(first, panel, out)`, and calls
/// `multiply(panels, factors, sums)` for pieces of the factors, which have `width` for each token, from their first step
/// on.
fn by_blocks<L: Copy + Send + Sync, F: Sync>(
    (factors, width): (&[F], usize),
    weights: &(impl Unpack + ?Sized),
    (block, zero): (usize, L),
    unpack: impl Fn(usize, usize, &mut [L]) + Sync,
    multiply: impl Fn(&[&[L]], &[F], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (tokens, columns) = (factors.len() / width, weights.columns());
    let strips = Strips { columns, width: STRIP_WIDTH };
    // No more pieces than it takes for the threads' shares to differ by little: each unpacks its weights.
    let tall = (PIECES_EACH * current_num_threads()).div_ceil(columns.div_ceil(STRIP_WIDTH));
    let height = tokens.div_ceil(tall).next_multiple_of(STRIP_TOKENS).max(STRIP_TOKENS);
    summed(tokens, strips, height, |piece, sums| {
        let panels = piece.columns.start / LANES..piece.columns.end.div_ceil(LANES);
        let mut unpacked = vec![zero; panels.len() * block.min(width)];
        for first in (0..width).step_by(block) {
            let steps = block.min(width - first);
            let unpacked = &mut unpacked[..panels.len() * steps];
            unpacked.chunks_mut(steps).zip(panels.clone()).for_each(|(out, panel)| unpack(first, panel, out));
            let held: Vec<&[L]> = unpacked.chunks(steps).collect();
            let tokens = piece.rows.clone().step_by(STRIP_TOKENS);
            for (token, sums) in tokens.zip(sums.chunks_mut(STRIP_TOKENS * STRIP_WIDTH)) {
                multiply(&held, &factors[token * width + first..], sums);
            }
        }
    })
}
