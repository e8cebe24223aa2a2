//! Matrices that threads write strip by strip.

#![allow(unsafe_code, reason = "matrices whose strips different threads write")]

use std::{marker::PhantomData, ops::Range};

use super::{parallel::DisjointPtr, pool::for_each};
use crate::kernels::layout::panels::LANES;

/// The columns of a matrix, cut into strips.
#[derive(Clone, Copy)]
pub struct Strips {
    pub columns: usize,
    /// Columns of a strip.
    pub width: usize,
}

/// A strip of columns of a matrix that is being written: from left to right [`LANES`] columns at a time, and those row
/// by row.
pub struct Strip<'a> {
    pub columns: Range<usize>,
    /// The start of the first row.
    first: *mut f32,
    row_len: usize,
    rows: usize,
    /// The place that is written next.
    row: usize,
    column: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl Strip<'_> {
    /// Writes the next values of some rows, of each as many as there are columns left.
    pub fn push(&mut self, values: &[[f32; LANES]]) {
        assert!(values.len() <= self.rows - self.row && self.column < self.columns.len());
        let (len, start) = (LANES.min(self.columns.len() - self.column), self.row * self.row_len + self.column);
        for (values, at) in values.iter().zip((start..).step_by(self.row_len)) {
            // SAFETY: rows and columns are inside the matrix, and no other strip has them.
            unsafe {
                let at = self.first.add(at);
                if len == LANES { at.cast::<[f32; LANES]>().write_unaligned(*values) } else { copy(&values[..len], at) }
            }
        }
        self.row += values.len();
        if self.row == self.rows {
            (self.row, self.column) = (0, self.column + LANES);
        }
    }

    /// Writes a whole strip at once, `[rows, columns]`.
    pub fn write(&mut self, values: &[f32]) {
        assert!(self.row == 0 && self.column == 0 && values.len() == self.rows * self.columns.len());
        for (row, values) in values.chunks(self.columns.len()).enumerate() {
            let at = self.first.wrapping_add(row * self.row_len);
            // SAFETY: as in `push`.
            unsafe { at.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        }
        self.column = self.columns.len();
    }

    /// A buffer of its own, `[rows, columns]`, that `task` writes as a strip of these columns.
    pub fn alone(rows: usize, columns: Range<usize>, task: impl FnOnce(&mut Strip<'_>)) -> Vec<f32> {
        let row_len = columns.len();
        let mut values = Vec::with_capacity(rows * row_len);
        let first = values.as_mut_ptr();
        let mut strip = Strip { columns, first, row_len, rows, row: 0, column: 0, borrowed: PhantomData };
        task(&mut strip);
        assert!(strip.is_written());
        // SAFETY: the whole strip was written.
        unsafe { values.set_len(rows * row_len) };
        values
    }

    fn is_written(&self) -> bool {
        self.rows == 0 || self.column >= self.columns.len()
    }
}

/// Copies the values of a narrow last panel. It is a call of its own, since compilers would merge it with the copies of
/// whole panels, whose length they know.
///
/// # Safety
/// `values.len()` values may be written at `to`.
#[cold]
#[inline(never)]
unsafe fn copy(values: &[f32], to: *mut f32) {
    // SAFETY: passed on.
    unsafe { to.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
}

/// Matrices of `rows` rows. `task` writes them strip by strip, and gets the index of the matrix with each strip.
pub fn written<const N: usize>(
    rows: usize,
    matrices: [Strips; N],
    task: impl Fn(usize, &mut Strip<'_>) + Sync,
) -> [Vec<f32>; N] {
    let mut ends = [0; N];
    let mut all = 0;
    for (end, Strips { columns, width }) in ends.iter_mut().zip(matrices) {
        all += columns.div_ceil(width);
        *end = all;
    }
    let mut results = matrices.map(|Strips { columns, .. }| Vec::with_capacity(rows * columns));
    let starts = results.each_mut().map(|result| DisjointPtr(result.as_mut_ptr()));
    for_each(all, |i| {
        let of = ends.partition_point(|end| *end <= i);
        let Strips { columns: row_len, width } = matrices[of];
        let start = (i - if of == 0 { 0 } else { ends[of - 1] }) * width;
        let (first, columns) = (starts[of].at(start), start..row_len.min(start + width));
        let mut strip = Strip { columns, first, row_len, rows, row: 0, column: 0, borrowed: PhantomData };
        task(of, &mut strip);
        assert!(strip.is_written());
    });
    for (result, Strips { columns, .. }) in results.iter_mut().zip(matrices) {
        // SAFETY: every strip was written, unless a panic of a task went past this.
        unsafe { result.set_len(rows * columns) };
    }
    results
}

/// A matrix whose rows are cut into bands that end at `ends`. `task` writes a strip of a band at a time, and gets its
/// index: the strips of the first band come first. A thread takes `at_once` strips at a time.
pub fn written_in_bands(
    ends: &[usize],
    Strips { columns: row_len, width }: Strips,
    at_once: usize,
    task: impl Fn(usize, &mut Strip<'_>) + Sync,
) -> Vec<f32> {
    assert!(ends.is_sorted());
    let rows = ends.last().copied().unwrap_or(0);
    let (across, mut values) = (row_len.div_ceil(width), Vec::<f32>::with_capacity(rows * row_len));
    let (matrix, count) = (DisjointPtr(values.as_mut_ptr()), ends.len() * across);
    for_each(count.div_ceil(at_once), |some| {
        for i in some * at_once..count.min((some + 1) * at_once) {
            let (band, start) = (i / across, i % across * width);
            let row = if band == 0 { 0 } else { ends[band - 1] };
            let (first, columns) = (matrix.at(row * row_len + start), start..row_len.min(start + width));
            let rows = ends[band] - row;
            let mut strip = Strip { columns, first, row_len, rows, row: 0, column: 0, borrowed: PhantomData };
            task(i, &mut strip);
            assert!(strip.is_written());
        }
    });
    // SAFETY: every strip was written, unless a panic of a task went past this.
    unsafe { values.set_len(rows * row_len) };
    values
}

/// A rectangle of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixTile {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// A matrix of `rows` rows that is computed in tiles, `height` rows of a strip. `sum` adds the values of a tile to
/// zeros, whose rows are as wide as a strip.
pub fn summed(
    rows: usize,
    Strips { columns, width }: Strips,
    height: usize,
    sum: impl Fn(&MatrixTile, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut values = Vec::<f32>::with_capacity(rows * columns);
    let (matrix, tall) = (DisjointPtr(values.as_mut_ptr()), rows.div_ceil(height));
    for_each(tall * columns.div_ceil(width), |i| {
        let (row, column) = (i % tall * height, i / tall * width);
        let tile = MatrixTile { rows: row..rows.min(row + height), columns: column..columns.min(column + width) };
        let mut sums = vec![0f32; tile.rows.len() * width];
        sum(&tile, &mut sums);
        for (row, sums) in tile.rows.zip(sums.chunks(width)) {
            let sums = &sums[..tile.columns.len()];
            // SAFETY: tiles are inside the capacity and do not overlap.
            unsafe { matrix.at(row * columns + column).copy_from_nonoverlapping(sums.as_ptr(), sums.len()) };
        }
    });
    // SAFETY: every tile was written, unless a panic of a task went past this.
    unsafe { values.set_len(rows * columns) };
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::threads::ThreadPool;

    #[test]
    fn every_value_of_a_matrix_is_written_once() {
        let pool = ThreadPool::new("pool", 2).unwrap();
        for rows in [0, 1, 5, 48] {
            let write = |_, strip: &mut Strip<'_>| {
                for column in strip.columns.clone().step_by(LANES) {
                    let values = |row| std::array::from_fn(|lane| (row * 100 + column + lane) as f32);
                    for two in (0..rows).map(values).collect::<Vec<_>>().chunks(2) {
                        strip.push(two);
                    }
                }
            };
            let sum = |tile: &MatrixTile, sums: &mut [f32]| {
                for (row, sums) in tile.rows.clone().zip(sums.chunks_mut(3)) {
                    for (sum, column) in sums.iter_mut().zip(tile.columns.clone()) {
                        *sum += (row * 100 + column) as f32;
                    }
                }
            };
            let whole = |columns| -> Vec<f32> {
                (0..rows * columns).map(|i| (i / columns * 100 + i % columns) as f32).collect()
            };
            pool.scope(|| {
                let strips = [Strips { columns: 39, width: 32 }, Strips { columns: 64, width: 16 }];
                assert_eq!(written(rows, strips, write), [39, 64].map(whole));
                let [at_once] = written(rows, [strips[1]], |_, strip| {
                    let alone = Strip::alone(rows, strip.columns.clone(), |alone| write(0, alone));
                    strip.write(&alone);
                });
                assert_eq!(at_once, whole(64));
                let by_band = |at_once| {
                    written_in_bands(&[rows / 3, rows / 2, rows], strips[0], at_once, |i, strip| {
                        let first = [0, rows / 3, rows / 2][i / 2] * 39;
                        let whole = whole(39);
                        let rows: Vec<_> = whole[first..].chunks(39).take(strip.rows).collect();
                        strip.write(
                            &rows.iter().flat_map(|row| row[strip.columns.clone()].to_vec()).collect::<Vec<_>>(),
                        );
                    })
                };
                assert_eq!([1, 4].map(by_band), [whole(39), whole(39)]);
                assert_eq!(summed(rows, Strips { columns: 7, width: 3 }, 2, sum), whole(7));
            });
        }
    }
}
