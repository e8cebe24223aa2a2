//! Loops whose pieces are shared by the threads of a pass. What a loop makes is never touched before: each piece is
//! zeroed by the thread that fills it, while it is in its cache.

#![allow(unsafe_code)]

use std::{marker::PhantomData, ops::Range};

use bytemuck::Zeroable;

use super::team::for_each;

/// Pointers to what each task has of its own.
struct Pieces<T>(*mut T);

// SAFETY: each task takes other elements, which may be sent.
unsafe impl<T: Send> Sync for Pieces<T> {}

impl<T> Pieces<T> {
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
    let pieces = Pieces(items.as_mut_ptr());
    for_each(count, |i| {
        let first = i * len;
        // SAFETY: it is inside the items, no other task has the same ones, and they are borrowed until all tasks are done.
        let piece = unsafe { std::slice::from_raw_parts_mut(pieces.at(first), len.min(all - first)) };
        task(i, piece);
    });
}

/// `all` numbers that `task` fills, zeros at first, in pieces of `len`; the last one may be shorter.
pub fn filled<T: Zeroable + Send>(all: usize, len: usize, task: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut numbers = Vec::with_capacity(all);
    let pieces = Pieces(numbers.as_mut_ptr());
    for_each(all.div_ceil(len), |i| {
        let first = i * len;
        // SAFETY: it is inside what was allocated, and no other task has the same numbers.
        task(i, unsafe { zeroed(pieces.at(first), len.min(all - first)) });
    });
    // SAFETY: all pieces were zeroed, or this is not reached.
    unsafe { numbers.set_len(all) };
    numbers
}

/// The numbers from `first` on, zeroed.
///
/// # Safety
/// There is memory for them, which nobody else has.
unsafe fn zeroed<'a, T: Zeroable>(first: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's; zeros are numbers of this type.
    unsafe {
        first.write_bytes(0, len);
        std::slice::from_raw_parts_mut(first, len)
    }
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

/// A strip of columns.
pub struct Strip<'a> {
    /// Where its first row begins.
    first: *mut f32,
    row_len: usize,
    rows: usize,
    pub columns: Range<usize>,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl<'a> Strip<'a> {
    /// One that is all there is, `[rows, columns]`, of the columns that another has.
    pub fn alone(numbers: &'a mut [f32], columns: Range<usize>) -> Self {
        let rows = numbers.len() / columns.len();
        Self { first: numbers.as_mut_ptr(), row_len: columns.len(), rows, columns, borrowed: PhantomData }
    }

    /// One of the matrix that begins at `matrix`, zeroed.
    ///
    /// # Safety
    /// There is memory for it, which nobody else has.
    unsafe fn zeroed(matrix: *mut f32, row_len: usize, rows: usize, columns: Range<usize>) -> Self {
        let first = matrix.wrapping_add(columns.start);
        for row in 0..rows {
            // SAFETY: the caller's.
            unsafe { zeroed(first.wrapping_add(row * row_len), columns.len()) };
        }
        Self { first, row_len, rows, columns, borrowed: PhantomData }
    }

    /// Its piece of a row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        let at = row * self.row_len;
        // SAFETY: row and columns are inside the numbers, which no other strip has.
        unsafe { std::slice::from_raw_parts_mut(self.first.wrapping_add(at), self.columns.len()) }
    }
}

/// Matrices of `rows` rows that `task` fills, zeros at first, strip by strip, each with the matrix's index.
pub fn filled_strips<const N: usize>(
    rows: usize,
    matrices: [Strips; N],
    task: impl Fn(usize, Strip<'_>) + Sync,
) -> [Vec<f32>; N] {
    let mut ends = [0; N];
    let mut all = 0;
    for (end, Strips { columns, width }) in ends.iter_mut().zip(matrices) {
        all += columns.div_ceil(width);
        *end = all;
    }
    let mut numbers = matrices.map(|Strips { columns, .. }| Vec::with_capacity(rows * columns));
    let pieces = numbers.each_mut().map(|numbers| Pieces(numbers.as_mut_ptr()));
    for_each(all, |i| {
        let of = ends.partition_point(|end| *end <= i);
        let Strips { columns, width } = matrices[of];
        let start = (i - if of == 0 { 0 } else { ends[of - 1] }) * width;
        // SAFETY: it is inside what was allocated, and no other task has the same columns.
        task(of, unsafe { Strip::zeroed(pieces[of].at(0), columns, rows, start..columns.min(start + width)) });
    });
    for (numbers, Strips { columns, .. }) in numbers.iter_mut().zip(matrices) {
        // SAFETY: all strips were zeroed, or this is not reached.
        unsafe { numbers.set_len(rows * columns) };
    }
    numbers
}

/// Some rows and columns of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// A matrix of `rows` rows that is computed `height` rows of a strip at a time: `sum` adds what a piece is to zeros, of which
/// each row has as many as a strip is wide.
pub fn summed(
    rows: usize,
    Strips { columns, width }: Strips,
    height: usize,
    sum: impl Fn(&Piece, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut numbers = Vec::<f32>::with_capacity(rows * columns);
    let (matrix, tall) = (Pieces(numbers.as_mut_ptr()), rows.div_ceil(height));
    for_each(tall * columns.div_ceil(width), |i| {
        let (row, column) = (i % tall * height, i / tall * width);
        let piece = Piece { rows: row..rows.min(row + height), columns: column..columns.min(column + width) };
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
    use crate::kernels::team::Team;

    #[test]
    fn without_a_team_loops_are_done_all_the_same() {
        let mut items = [0; 10];
        for_chunks_mut(&mut items, 3, |i, items| items.fill(i));
        assert_eq!(items, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(map(&[] as &[i32], |_, x| *x), [] as [i32; 0]);
    }

    #[test]
    fn every_piece_is_zeros_until_it_is_filled() {
        let team = Team::new("team", 2).unwrap();
        for rows in [0, 1, 5, 48] {
            let fill = |_, mut strip: Strip<'_>| {
                for row in 0..rows {
                    let columns = strip.columns.clone();
                    for (number, column) in strip.row(row).iter_mut().zip(columns) {
                        *number += (row * 100 + column) as f32;
                    }
                }
            };
            let sum = |piece: &Piece, sums: &mut [f32]| {
                for (row, sums) in piece.rows.clone().zip(sums.chunks_mut(3)) {
                    for (sum, column) in sums.iter_mut().zip(piece.columns.clone()) {
                        *sum += (row * 100 + column) as f32;
                    }
                }
            };
            let whole = |columns| -> Vec<f32> {
                (0..rows * columns).map(|i| (i / columns * 100 + i % columns) as f32).collect()
            };
            team.pass(|| {
                let strips = [Strips { columns: 7, width: 3 }, Strips { columns: 16, width: 4 }];
                assert_eq!(filled_strips(rows, strips, fill), [7, 16].map(whole));
                assert_eq!(summed(rows, strips[0], 2, sum), whole(7));
                let counted = filled(rows, 3, |part, piece: &mut [usize]| {
                    piece.iter_mut().enumerate().for_each(|(i, number)| *number += part * 3 + i);
                });
                assert_eq!(counted, (0..rows).collect::<Vec<_>>());
            });
        }
    }
}
