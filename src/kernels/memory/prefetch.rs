//! Memory that is asked for before it is read.

#![allow(unsafe_code, reason = "prefetch instructions")]

use std::slice;

/// What memory comes in.
pub const LINE_BYTES: usize = 64;

/// Pieces of memory of one length that are read soon. Their lines are asked for one after the other while something else is
/// computed: many at once would have to wait for each other.
pub struct Prefetcher<'a> {
    /// Which pieces, of those that lie one after the other from `first` on.
    pieces: slice::Iter<'a, u32>,
    first: *const u8,
    stride: usize,
    len: usize,
    /// The rest of the piece that has its turn.
    at: *const u8,
    end: *const u8,
    /// Bytes for each unit of work, and those not asked for yet, in parts of a [`SCALE`]th.
    rate: usize,
    due: usize,
}

/// Rates are that many times as great.
const SCALE: usize = 1 << 8;

impl<'a> Prefetcher<'a> {
    pub fn idle() -> Self {
        Self::new(&[], std::ptr::null(), 0, 0, 1)
    }

    /// Of the pieces from `first` on, whose starts are `stride` bytes from each other, the first `len` bytes of those of these
    /// numbers, evenly while so many units of `work` are done.
    pub fn new(pieces: &'a [u32], first: *const u8, stride: usize, len: usize, work: usize) -> Self {
        let rate = (pieces.len() * len * SCALE).div_ceil(work);
        Self { pieces: pieces.iter(), first, stride, len, at: first, end: first, rate, due: 0 }
    }

    /// Asks for what is due after so much work.
    #[inline(always)]
    pub fn step(&mut self, work: usize) {
        self.due += self.rate * work;
        while self.due >= LINE_BYTES * SCALE {
            self.due -= LINE_BYTES * SCALE;
            if self.at >= self.end {
                let Some(piece) = self.pieces.next() else {
                    (self.rate, self.due) = (0, 0);
                    return;
                };
                self.at = self.first.wrapping_add(*piece as usize * self.stride);
                self.end = self.at.wrapping_add(self.len);
            }
            prefetch_line(self.at);
            self.at = self.at.wrapping_add(LINE_BYTES);
        }
    }
}

/// Asks for what is read soon.
pub fn prefetch<T>(elements: &[T]) {
    let first = elements.as_ptr().cast::<u8>();
    (0..size_of_val(elements)).step_by(LINE_BYTES).for_each(|at| prefetch_line(first.wrapping_add(at)));
}

/// Asks for a line of memory, if the machine can. It need not be there.
#[inline(always)]
fn prefetch_line(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 machine has the instruction, which reads nothing that the program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
