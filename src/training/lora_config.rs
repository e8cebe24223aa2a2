use std::path::PathBuf;

use crate::{Error, Result, config::setters};

/// Which adapter is trained. `LoraConfig::new()` and the builder methods.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraConfig {
    /// The rank of what is added to a matrix (8), at most the longer side of each.
    pub rank: usize,
    /// What is added is multiplied by `alpha / rank` (16).
    pub alpha: f32,
    /// The linear maps that are adapted, by what their modules' names end with (`q_proj`, `v_proj`); `all-linear`
    /// stands for all of the layers.
    pub target_keys: Vec<String>,
    /// Whether products with the weights are in bfloat16 with sums of 32 bits, about twice as fast where the machine
    /// has instructions for it, and the adapter is saved in bfloat16 (`false`: all in 32 bits). It is learned in 32
    /// bits.
    pub bfloat16: bool,
    /// Whether it is multiplied by `alpha / √rank` instead ([rsLoRA](https://arxiv.org/abs/2312.03732)).
    pub rank_stabilized: bool,
    /// Whether the lengths of the weights' rows are learned, too ([DoRA](https://arxiv.org/abs/2402.09353)).
    pub dora: bool,
    /// What the random numbers of a new adapter are made from (0).
    pub seed: u64,
    /// A directory of PEFT or MLX-LM with an adapter to begin with, whose ranks, scales and modules take the place of
    /// those here.
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

    /// Sets [`target_keys`](Self::target_keys), in place of those there are.
    #[must_use]
    pub fn target_keys<S: Into<String>>(mut self, keys: impl IntoIterator<Item = S>) -> Self {
        self.target_keys = keys.into_iter().map(Into::into).collect();
        self
    }

    /// What the product of the two matrices is multiplied by.
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
