/// Where the factors of a tile's `R` rows are for a step. There are two pointers, since machines add a stride once or twice to
/// one where they read, and more often in an instruction of its own.
pub struct FactorRows<F, const R: usize> {
    first: *const F,
    middle: *const F,
    stride: usize,
}

impl<F, const R: usize> FactorRows<F, R> {
    /// # Safety
    /// All rows, `stride` from each other, are of one allocation.
    #[inline(always)]
    pub unsafe fn new(first: *const F, stride: usize) -> Self {
        // SAFETY: passed on.
        Self { first, middle: unsafe { first.add(R / 2 * stride) }, stride }
    }

    /// # Safety
    /// There is the row.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize) -> *const F {
        // SAFETY: passed on.
        unsafe {
            match row.checked_sub(R / 2) {
                None => self.first.add(row * self.stride),
                Some(row) => self.middle.add(row * self.stride),
            }
        }
    }

    /// Goes on by so many factors.
    #[inline(always)]
    pub fn advance(&mut self, factors: usize) {
        self.first = self.first.wrapping_add(factors);
        self.middle = self.middle.wrapping_add(factors);
    }
}
