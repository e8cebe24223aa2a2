//! Loops over rows, shared by threads where they are long.

use crate::kernels::{
    layout::panels::LANES,
    threads::{
        current_num_threads,
        parallel::{changed, filled, for_chunks_mut},
    },
};

/// Values below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 13;
/// Values that a thread takes at a time, at most: few enough for its cache.
const PIECE_LEN: usize = 1 << 14;
/// Values that are taken together where rows do not matter.
pub const ROW_LEN: usize = 1024;

/// Sums in [`LANES`] lanes, as many as every path has.
#[inline(always)]
pub fn sum(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    for x in x.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = add(*x, *sum);
        }
    }
    sums.into_iter().sum()
}

/// Sums over pairs as [`sum`] does.
#[inline(always)]
pub fn sum_of(x: &[f32], y: &[f32], add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum = add(*x, *y, *sum);
        }
    }
    sums.into_iter().sum()
}

/// Calls `compute` for each row of `out`.
pub fn for_rows(out: &mut [f32], row_len: usize, compute: impl Fn(usize, &mut [f32]) + Sync) {
    let len = piece_len(out.len(), row_len);
    for_chunks_mut(out, len, |part, out| {
        let first = part * len / row_len;
        out.chunks_mut(row_len).zip(first..).for_each(|(out, row)| compute(row, out));
    });
}

/// `len` values, of which `compute` fills each row; they are zeros before.
pub fn filled_rows(len: usize, row_len: usize, compute: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let piece_len = piece_len(len, row_len);
    filled(len, piece_len, |part, out| {
        let first = part * piece_len / row_len;
        out.chunks_mut(row_len).zip(first..).for_each(|(out, row)| compute(row, out));
    })
}

/// A copy of `x` whose rows `change` has changed.
pub fn changed_rows(x: &[f32], row_len: usize, change: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let len = piece_len(x.len(), row_len);
    changed(x, len, |part, out| {
        let first = part * len / row_len;
        out.chunks_mut(row_len).zip(first..).for_each(|(out, row)| change(row, out));
    })
}

/// Values that a thread takes at a time, whole rows.
fn piece_len(len: usize, row_len: usize) -> usize {
    let share = if len < PARALLEL_LEN { len } else { len.div_ceil(current_num_threads()).min(PIECE_LEN) };
    share.next_multiple_of(row_len).max(row_len)
}
