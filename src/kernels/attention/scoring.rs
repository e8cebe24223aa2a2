//! Scores of queries and keys.

/// The score of a query and a key.
#[derive(Debug, Clone, Copy)]
pub struct AttentionScoring<'a> {
    /// The factor of dot products.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// Number of keys that a row attends to: its own key and the ones before it. `None`: all.
    pub window: Option<usize>,
    /// Attention sinks ([StreamingLLM](https://arxiv.org/abs/2309.17453)): for each query head the score of an
    /// additional key, whose value is zero.
    pub sinks: Option<&'a [f32]>,
    /// Linear biases: scores decrease with the distance of the key, by this times the [`slope`] of the head.
    pub alibi: Option<f32>,
}

/// The slope of a head's linear biases ([ALiBi](https://arxiv.org/abs/2108.12409)): powers of `2^(-8 / heads)`. If
/// `heads` is no power of two, heads beyond one use powers of its root.
pub fn slope(head: usize, num_heads: usize) -> f32 {
    let whole = 1 << num_heads.ilog2();
    let power = if head < whole { (head + 1) as f64 } else { (head - whole) as f64 + 0.5 };
    (-8.0 * power / whole as f64).exp2() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!([0, 1, 7].map(|head| slope(head, 8)), [0.5, 0.25, 1.0 / 256.0]);
        // The first eight of twelve heads have the slopes of eight heads, the others every second slope of sixteen.
        assert_eq!([0, 7].map(|head| slope(head, 12)), [0.5, 1.0 / 256.0]);
        assert_eq!([8, 11].map(|head| slope(head, 12)), [-0.5f32, -3.5].map(f32::exp2));
    }
}
