//! Pairs of 16-bit factors.

/// The bits of a pair of factors, to be broadcast to all lanes.
#[inline(always)]
pub fn bits([first, second]: [i16; 2]) -> i32 {
    i32::from(first) & 0xffff | i32::from(second) << 16
}
