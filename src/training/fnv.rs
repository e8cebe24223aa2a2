//! A stable hash for fingerprints.

/// [FNV-1a](https://datatracker.ietf.org/doc/html/draft-eastlake-fnv), the same hash in every build.
pub struct Fnv1a(pub u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Hashes a sequence and its end.
    pub fn add<T: Into<u64>>(&mut self, items: impl Iterator<Item = T>) {
        let end = std::iter::once(u64::MAX);
        self.0 =
            items.map(Into::into).chain(end).fold(self.0, |hash, item| (hash ^ item).wrapping_mul(0x0100_0000_01b3));
    }
}
