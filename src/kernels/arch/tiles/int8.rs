/// A pair of factors as the bits that all lanes have.
#[inline(always)]
pub fn bits([first, second]: [i16; 2]) -> i32 {
    i32::from(first) & 0xffff | i32::from(second) << 16
}
