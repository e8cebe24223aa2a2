//! Software prefetching.

#![allow(unsafe_code, reason = "prefetch instructions")]

use std::slice;

/// Bytes of a cache line.
pub const LINE_BYTES: usize = 64;

/// Prefetches pieces of memory line by line, in step with other work. Processors have few line fills under way at once,
/// so lines that are requested together would wait for each other.
pub struct Prefetcher<'a> {
    /// Indices of the pieces that come next.
    pieces: slice::Iter<'a, u32>,
    first: *const u8,
    stride: usize,
    len: usize,
    /// The rest of the current piece.
    at: *const u8,
    end: *const u8,
    /// Bytes for each unit of work, times [`SCALE`].
    rate: usize,
    /// Bytes that are due and not requested yet, times [`SCALE`].
    due: usize,
}

/// Denominator of the fixed-point numbers of bytes.
const SCALE: usize = 1 << 8;

impl<'a> Prefetcher<'a> {
    /// A prefetcher without pieces.
    pub fn idle() -> Self {
        Self::new(&[], std::ptr::null(), 0, 0, 1)
    }

    /// Prefetches `len` bytes of each of the `pieces`, spread evenly over `work` units of work. Piece `i` starts `i *
    /// stride` bytes after `first`.
    pub fn new(pieces: &'a [u32], first: *const u8, stride: usize, len: usize, work: usize) -> Self {
        let rate = (pieces.len() * len * SCALE).div_ceil(work);
        Self { pieces: pieces.iter(), first, stride, len, at: first, end: first, rate, due: 0 }
    }

    /// Requests the lines that are due after `work` more units of work.
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

/// Prefetches all lines of a slice.
pub fn prefetch<T>(elements: &[T]) {
    let first = elements.as_ptr().cast::<u8>();
    (0..size_of_val(elements)).step_by(LINE_BYTES).for_each(|at| prefetch_line(first.wrapping_add(at)));
}

/// Prefetches a line into the second-level cache, on machines with an instruction for it. Any address is allowed.
#[inline(always)]
fn prefetch_line(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 machine has the instruction, which faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
