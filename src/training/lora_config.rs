//! `LoraConfig`.

use std::path::PathBuf;

use crate::{Error, Result, config::setters};

/// The shape of a LoRA adapter to train. `LoraConfig::new()` and the builder methods.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraConfig {
    /// The rank of the update of a matrix (8), at most the longer side of each matrix.
    pub rank: usize,
    /// The update is scaled by `alpha / rank` (16).
    pub alpha: f32,
    /// The linear layers to adapt, by the last components of their modules' names (`q_proj`, `v_proj`); `all-linear`
    /// targets all linear layers but embeddings and head.
    pub target_keys: Vec<String>,
    /// Whether products with the weights are in bfloat16 with f32 sums, about twice as fast on CPUs with bfloat16
    /// instructions, and the adapter is saved in bfloat16 (`false`: all in f32). Parameters and optimizer are f32.
    pub bfloat16: bool,
    /// Whether the scale is `alpha / √rank` instead ([rsLoRA](https://arxiv.org/abs/2312.03732)).
    pub rank_stabilized: bool,
    /// Whether the magnitudes of the weights' rows are trained, too ([DoRA](https://arxiv.org/abs/2402.09353)).
    pub dora: bool,
    /// The seed of a new adapter's random values (0).
    pub seed: u64,
    /// A PEFT or MLX-LM directory with an adapter to continue from; its ranks, scales and modules override the fields
    /// above.
    pub initial: Option<PathBuf>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            target_keys: vec!["q_proj".into(), "v_proj".into()],
            bfloat16: false,
            rank_stabilized: false,
            dora: false,
            seed: 0,
            initial: None,
        }
    }
}

impl LoraConfig {
    /// Rank 8 on queries and values.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets [`rank`](Self::rank).
        rank: usize => rank;
        /// Sets [`alpha`](Self::alpha).
        alpha: f32 => alpha;
        /// Sets [`bfloat16`](Self::bfloat16).
        bfloat16: bool => bfloat16;
        /// Sets [`rank_stabilized`](Self::rank_stabilized).
        rank_stabilized: bool => rank_stabilized;
        /// Sets [`dora`](Self::dora).
        dora: bool => dora;
        /// Sets [`initial`](Self::initial).
        initial: impl Into<PathBuf> => Some(initial.into());
        /// Sets [`seed`](Self::seed).
        seed: u64 => seed;
    }

    /// Replaces [`target_keys`](Self::target_keys).
    #[must_use]
    pub fn target_keys<S: Into<String>>(mut self, keys: impl IntoIterator<Item = S>) -> Self {
        self.target_keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// The factor of the product of B and A.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        f64::from(self.alpha) / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::config("rank", "at least 1 is needed"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::config("alpha", format!("{} is not above zero", self.alpha)));
        }
        if self.target_keys.is_empty() {
            return Err(Error::config("target_keys", "there are none"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_configurations_name_the_field() {
        let field = |config: LoraConfig| config.validate().unwrap_err().to_string();
        assert!(field(LoraConfig::new().rank(0)).contains("rank"));
        assert!(field(LoraConfig::new().target_keys([""; 0])).contains("target_keys"));
    }
}
