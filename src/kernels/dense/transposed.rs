//! Products with transposed weight matrices, which take gradients back through linear maps.

use super::rounding::{RoundedRows, round_row, rounded};
use crate::kernels::{
    Isa,
    layout::{
        bf16::{Bf16Factor, Bf16Product, PairLine},
        panels::{LANES, PanelProduct, Panels},
    },
    threads::{
        current_num_threads,
        strips::{Strips, summed},
    },
};

/// Rows of weights that are unpacked at a time.
const BLOCK_ROWS: usize = 256;
/// Panels of columns in a strip, and tokens that go through it at a time.
const STRIP_PANELS: usize = 4;
const STRIP_WIDTH: usize = STRIP_PANELS * LANES;
const STRIP_TOKENS: usize = 48;
/// Tiles of a product for each thread.
const TILES_EACH: usize = 8;

/// A packed weight matrix, `[rows, columns]`, that can be unpacked piece by piece.
pub trait Unpack: Sync {
    fn rows(&self) -> usize;
    fn columns(&self) -> usize;
    /// Writes the columns of panel `panel` (`panel * LANES..`, as far as they exist) of the rows `first..first +
    /// out.len()`. `first` is a multiple of [`LANES`].
    fn unpack(&self, first: usize, panel: usize, out: &mut [[f32; LANES]], isa: Isa);

    /// As [`unpack`](Self::unpack), rounded to bfloat16 and two rows to a line. A row after the last one is zeros.
    fn unpack_pairs(&self, first: usize, panel: usize, out: &mut [PairLine], isa: Isa) {
        self.unpack_rounded(first, panel, out, isa);
    }

    /// [`unpack_pairs`](Self::unpack_pairs) by means of [`unpack`](Self::unpack).
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

/// `x W`: `x` is `[tokens, rows]`, the result `[tokens, columns]`.
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

/// As [`multiply`], with `x` and the weights rounded to bfloat16: twice as fast on machines with instructions for it.
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

/// The loop of both products. For each strip of columns it unpacks `block` steps of the weights at a time by
/// `unpack(first, panel, out)`, and calls `multiply(panels, factors, sums)` for some tokens at a time. `factors` is
/// `[tokens, width]` and passed from the first of these steps on.
fn by_blocks<L: Copy + Send + Sync, F: Sync>(
    (factors, width): (&[F], usize),
    weights: &(impl Unpack + ?Sized),
    (block, zero): (usize, L),
    unpack: impl Fn(usize, usize, &mut [L]) + Sync,
    multiply: impl Fn(&[&[L]], &[F], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (tokens, columns) = (factors.len() / width, weights.columns());
    let strips = Strips { columns, width: STRIP_WIDTH };
    // Each tile unpacks its weights, so there are only as many as balance the threads.
    let tall = (TILES_EACH * current_num_threads()).div_ceil(columns.div_ceil(STRIP_WIDTH));
    let height = tokens.div_ceil(tall).next_multiple_of(STRIP_TOKENS).max(STRIP_TOKENS);
    summed(tokens, strips, height, |tile, sums| {
        let panels = tile.columns.start / LANES..tile.columns.end.div_ceil(LANES);
        let mut unpacked = vec![zero; panels.len() * block.min(width)];
        for first in (0..width).step_by(block) {
            let steps = block.min(width - first);
            let unpacked = &mut unpacked[..panels.len() * steps];
            unpacked.chunks_mut(steps).zip(panels.clone()).for_each(|(out, panel)| unpack(first, panel, out));
            let held: Vec<&[L]> = unpacked.chunks(steps).collect();
            let tokens = tile.rows.clone().step_by(STRIP_TOKENS);
            for (token, sums) in tokens.zip(sums.chunks_mut(STRIP_TOKENS * STRIP_WIDTH)) {
                multiply(&held, &factors[token * width + first..], sums);
            }
        }
    })
}
