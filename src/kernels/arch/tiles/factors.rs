//! Pointers to the factors of a tile.

/// Pointers to the factors of a tile's `R` rows for one step. There are two of them, since an address can add a stride
/// once or twice, and a third time takes an instruction of its own.
pub struct FactorRows<F, const R: usize> {
    first: *const F,
    middle: *const F,
    stride: usize,
}

impl<F, const R: usize> FactorRows<F, R> {
    /// # Safety
    /// All rows, which are `stride` factors apart, are in one allocation.
    #[inline(always)]
    pub unsafe fn new(first: *const F, stride: usize) -> Self {
        // SAFETY: passed on.
        Self { first, middle: unsafe { first.add(R / 2 * stride) }, stride }
    }

    /// # Safety
    /// `row < R`.
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

    /// Advances by so many factors.
    #[inline(always)]
    pub fn advance(&mut self, factors: usize) {
        self.first = self.first.wrapping_add(factors);
        self.middle = self.middle.wrapping_add(factors);
    }
}
