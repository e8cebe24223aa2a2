//! Drafters of speculative decoding.

/// Guesses how an answer goes on. The guessed tokens are computed in one pass and verified, so a bad guess costs time
/// and changes nothing.
pub trait Drafter: Send {
    /// At most `limit` tokens that may come next, as far as the chance that all of them are right exceeds `price`, the
    /// cost of a wrong token in tokens.
    fn draft(&mut self, limit: usize, price: f64) -> Vec<u32>;

    /// Learns the next tokens of the answer, of which the first `accepted` were among the `drafted` tokens guessed.
    fn observe(&mut self, tokens: &[u32], drafted: usize, accepted: usize);
}
