//! Loops whose pieces are shared by the threads of a pass. The memory of what a loop makes is first touched by the thread
//! that fills it, piece by piece.

#![allow(unsafe_code)]

use std::{marker::PhantomData, ops::Range};

use bytemuck::Zeroable;

use super::pool::for_each;
use crate::kernels::layout::panels::LANES;

/// Pointers to what each task has of its own.
struct DisjointPtr<T>(*mut T);

// SAFETY: each task takes other elements, which may be sent.
unsafe impl<T: Send> Sync for DisjointPtr<T> {}

impl<T> DisjointPtr<T> {
    fn at(&self, at: usize) -> *mut T {
        self.0.wrapping_add(at)
    }
}

/// Calls `task` with each item.
pub fn for_each_mut<T: Send>(items: &mut [T], task: impl Fn(usize, &mut T) + Sync) {
    for_chunks_mut(items, 1, |i, item| task(i, &mut item[0]));
}

/// Calls `task` with each piece of `len` items; the last one may be shorter.
pub fn for_chunks_mut<T: Send>(items: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let (all, count) = (items.len(), items.len().div_ceil(len));
    let pieces = DisjointPtr(items.as_mut_ptr());
    for_each(count, |i| {
        let first = i * len;
        // SAFETY: it is inside the items, no other task has the same ones, and they are borrowed until all tasks are done.
        let piece = unsafe { std::slice::from_raw_parts_mut(pieces.at(first), len.min(all - first)) };
        task(i, piece);
    });
}

/// `all` numbers that `task` fills, zeros at first, in pieces of `len`; the last one may be shorter.
pub fn filled<T: Zeroable + Send>(all: usize, len: usize, task: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut numbers = Vec::<T>::with_capacity(all);
    let pieces = DisjointPtr(numbers.as_mut_ptr());
    for_each(all.div_ceil(len), |i| {
        let first = i * len;
        let len = len.min(all - first);
        // SAFETY: it is inside what was allocated, and no other task has the same numbers; zeros are of their type.
        let piece = unsafe {
            pieces.at(first).write_bytes(0, len);
            std::slice::from_raw_parts_mut(pieces.at(first), len)
        };
        task(i, piece);
    });
    // SAFETY: all pieces were zeroed, or this is not reached.
    unsafe { numbers.set_len(all) };
    numbers
}

/// A copy of numbers that `task` changes in pieces of `len`; the last one may be shorter.
pub fn changed(numbers: &[f32], len: usize, task: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut all = Vec::<f32>::with_capacity(numbers.len());
    let pieces = DisjointPtr(all.as_mut_ptr());
    for_each(numbers.len().div_ceil(len), |i| {
        let (first, from) = (i * len, &numbers[i * len..numbers.len().min((i + 1) * len)]);
        // SAFETY: it is inside what was allocated, and no other task has the same numbers.
        let piece = unsafe {
            pieces.at(first).copy_from_nonoverlapping(from.as_ptr(), from.len());
            std::slice::from_raw_parts_mut(pieces.at(first), from.len())
        };
        task(i, piece);
    });
    // SAFETY: all pieces were copied, or this is not reached.
    unsafe { all.set_len(numbers.len()) };
    all
}

/// What `task` makes of each item, in order.
pub fn map<T: Sync, R: Send>(items: &[T], task: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let mut made: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for_each_mut(&mut made, |i, made| *made = Some(task(i, &items[i])));
    made.into_iter().flatten().collect()
}

/// A matrix's columns, cut into strips.
#[derive(Clone, Copy)]
pub struct Strips {
    pub columns: usize,
    /// Columns of a strip.
    pub width: usize,
}

/// A strip of columns. It is written from left to right, [`LANES`] columns at a time, and of those one row after another.
pub struct Strip<'a> {
    pub columns: Range<usize>,
    /// Where its first row begins.
    first: *mut f32,
    row_len: usize,
    rows: usize,
    /// Where the next numbers go.
    row: usize,
    column: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl Strip<'_> {
    /// Writes the next numbers of some rows, as many of each as there are columns for.
    pub fn push(&mut self, numbers: &[[f32; LANES]]) {
        assert!(numbers.len() <= self.rows - self.row && self.column < self.columns.len());
        let (len, start) = (LANES.min(self.columns.len() - self.column), self.row * self.row_len + self.column);
        for (numbers, at) in numbers.iter().zip((start..).step_by(self.row_len)) {
            // SAFETY: rows and columns are inside what was allocated, and no other strip has them.
            unsafe {
                let at = self.first.add(at);
                if len == LANES {
                    at.cast::<[f32; LANES]>().write_unaligned(*numbers)
                } else {
                    copy(&numbers[..len], at)
                }
            }
        }
        self.row += numbers.len();
        if self.row == self.rows {
            (self.row, self.column) = (0, self.column + LANES);
        }
    }

    /// Writes all of it, `[rows, columns]`, of which nothing was written.
    pub fn write(&mut self, numbers: &[f32]) {
        assert!(self.row == 0 && self.column == 0 && numbers.len() == self.rows * self.columns.len());
        for (row, numbers) in numbers.chunks(self.columns.len()).enumerate() {
            let at = self.first.wrapping_add(row * self.row_len);
            // SAFETY: as in `push`.
            unsafe { at.copy_from_nonoverlapping(numbers.as_ptr(), numbers.len()) };
        }
        self.column = self.columns.len();
    }

    /// What `task` writes to a strip of these columns that is no part of anything, `[rows, columns]`.
    pub fn alone(rows: usize, columns: Range<usize>, task: impl FnOnce(&mut Strip<'_>)) -> Vec<f32> {
        let row_len = columns.len();
        let mut numbers = Vec::with_capacity(rows * row_len);
        let first = numbers.as_mut_ptr();
        let mut strip = Strip { columns, first, row_len, rows, row: 0, column: 0, borrowed: PhantomData };
        task(&mut strip);
        assert!(strip.is_written());
        // SAFETY: all of it was written.
        unsafe { numbers.set_len(rows * row_len) };
        numbers
    }

    fn is_written(&self) -> bool {
        self.rows == 0 || self.column >= self.columns.len()
    }
}

/// Copies numbers of which there are seldom any; compilers would make one call of this and of copies of a known length.
///
/// # Safety
/// They may be written at `to`.
#[cold]
#[inline(never)]
unsafe fn copy(numbers: &[f32], to: *mut f32) {
    // SAFETY: passed on.
    unsafe { to.copy_from_nonoverlapping(numbers.as_ptr(), numbers.len()) };
}

/// Matrices of `rows` rows that `task` writes strip by strip, each with the matrix's index.
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
    let mut numbers = matrices.map(|Strips { columns, .. }| Vec::with_capacity(rows * columns));
    let pieces = numbers.each_mut().map(|numbers| DisjointPtr(numbers.as_mut_ptr()));
    for_each(all, |i| {
        let of = ends.partition_point(|end| *end <= i);
        let Strips { columns: row_len, width } = matrices[of];
        let start = (i - if of == 0 { 0 } else { ends[of - 1] }) * width;
        let (first, columns) = (pieces[of].at(start), start..row_len.min(start + width));
        let mut strip = Strip { columns, first, row_len, rows, row: 0, column: 0, borrowed: PhantomData };
        task(of, &mut strip);
        assert!(strip.is_written());
    });
    for (numbers, Strips { columns, .. }) in numbers.iter_mut().zip(matrices) {
        // SAFETY: all strips were written, or this is not reached.
        unsafe { numbers.set_len(rows * columns) };
    }
    numbers
}

/// A matrix that `task` writes in pieces, `at_once` of them in a thread: the strips of the first band of rows, then those of
/// the next ones, which end at `ends`.
pub fn written_in_bands(
    ends: &[usize],
    Strips { columns: row_len, width }: Strips,
    at_once: usize,
    task: impl Fn(usize, &mut Strip<'_>) + Sync,
) -> Vec<f32> {
    assert!(ends.is_sorted());
    let rows = ends.last().copied().unwrap_or(0);
    let (across, mut numbers) = (row_len.div_ceil(width), Vec::<f32>::with_capacity(rows * row_len));
    let (matrix, count) = (DisjointPtr(numbers.as_mut_ptr()), ends.len() * across);
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
    // SAFETY: all pieces were written, or this is not reached.
    unsafe { numbers.set_len(rows * row_len) };
    numbers
}

/// Some rows and columns of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixTile {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// A matrix of `rows` rows that is computed `height` rows of a strip at a time: `sum` adds what a piece is to zeros, of which
/// each row has as many as a strip is wide.
pub fn summed(
    rows: usize,
    Strips { columns, width }: Strips,
    height: usize,
    sum: impl Fn(&MatrixTile, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut numbers = Vec::<f32>::with_capacity(rows * columns);
    let (matrix, tall) = (DisjointPtr(numbers.as_mut_ptr()), rows.div_ceil(height));
    for_each(tall * columns.div_ceil(width), |i| {
        let (row, column) = (i % tall * height, i / tall * width);
        let piece = MatrixTile { rows: row..rows.min(row + height), columns: column..columns.min(column + width) };
        let mut sums = vec![0f32; piece.rows.len() * width];
        sum(&piece, &mut sums);
        for (row, sums) in piece.rows.zip(sums.chunks(width)) {
            let sums = &sums[..piece.columns.len()];
            // SAFETY: it is inside what was allocated, and no other task has the same numbers.
            unsafe { matrix.at(row * columns + column).copy_from_nonoverlapping(sums.as_ptr(), sums.len()) };
        }
    });
    // SAFETY: all pieces were written, or this is not reached.
    unsafe { numbers.set_len(rows * columns) };
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::threads::ThreadPool;

    #[test]
    fn without_a_team_loops_are_done_all_the_same() {
        let mut items = [0; 10];
        for_chunks_mut(&mut items, 3, |i, items| items.fill(i));
        assert_eq!(items, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(map(&[] as &[i32], |_, x| *x), [] as [i32; 0]);
    }

    #[test]
    fn every_number_is_made_once() {
        let pool = ThreadPool::new("team", 2).unwrap();
        for rows in [0, 1, 5, 48] {
            let write = |_, strip: &mut Strip<'_>| {
                for column in strip.columns.clone().step_by(LANES) {
                    let numbers = |row| std::array::from_fn(|lane| (row * 100 + column + lane) as f32);
                    for two in (0..rows).map(numbers).collect::<Vec<_>>().chunks(2) {
                        strip.push(two);
                    }
                }
            };
            let sum = |piece: &MatrixTile, sums: &mut [f32]| {
                for (row, sums) in piece.rows.clone().zip(sums.chunks_mut(3)) {
                    for (sum, column) in sums.iter_mut().zip(piece.columns.clone()) {
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
                let counted = filled(rows, 3, |part, piece: &mut [usize]| {
                    piece.iter_mut().enumerate().for_each(|(i, number)| *number += part * 3 + i);
                });
                assert_eq!(counted, (0..rows).collect::<Vec<_>>());
                let more = changed(&whole(7), 3, |part, piece| piece.iter_mut().for_each(|x| *x += part as f32));
                let exact = whole(7).into_iter().enumerate().map(|(i, x)| x + (i / 3) as f32);
                assert_eq!(more, exact.collect::<Vec<_>>());
            });
        }
    }
}
