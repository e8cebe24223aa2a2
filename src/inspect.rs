//! Inspection: the keys, queries, attention weights and hidden states of a prompt.

use serde::{Deserialize, Serialize};

use crate::{GenerateConfig, config::setters};

/// Keys and queries of a prompt as attention takes them: after norms and rotary embedding, with the dimensions in the
/// order of the Hugging Face model.
///
/// Head counts and the head size are the first attention layer's; where layers differ, the lengths of `keys[layer]` and
/// `queries[layer]` tell. A layer without attention has neither keys nor queries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttentionSnapshot {
    /// Transformer layers.
    pub num_layers: usize,
    /// Key heads.
    pub num_heads: usize,
    /// Query heads, a multiple of `num_heads`: consecutive ones share a key head.
    pub num_query_heads: usize,
    /// Tokens of the prompt.
    pub seq_len: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The architecture's name: "llama", "qwen3", …
    pub architecture: String,
    /// `[layer][key head][seq_len * head_dim]`
    pub keys: Vec<Vec<Vec<f32>>>,
    /// `[layer][query head][seq_len * head_dim]`
    pub queries: Vec<Vec<Vec<f32>>>,
}

/// Settings of an inspection: `InspectConfig::new()` and the builder methods.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectConfig {
    /// Name of the adapter, as [`GenerateConfig::adapter`].
    pub adapter: Option<String>,
    /// Whether to use the base model, as [`GenerateConfig::base_model`] (`false`).
    pub base_model: bool,
    /// Whether attention weights are read (`false`).
    pub attention: bool,
    /// Whether hidden states are read (`false`).
    pub hidden_states: bool,
    /// The most bytes of the result (256 MiB).
    pub max_bytes: usize,
}

impl Default for InspectConfig {
    fn default() -> Self {
        Self { adapter: None, base_model: false, attention: false, hidden_states: false, max_bytes: 256 << 20 }
    }
}

impl InspectConfig {
    /// The defaults: keys and queries only.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets [`adapter`](Self::adapter).
        adapter: impl Into<String> => Some(adapter.into());
        /// Sets [`base_model`](Self::base_model).
        base_model: bool => base_model;
        /// Sets [`attention`](Self::attention).
        attention: bool => attention;
        /// Sets [`hidden_states`](Self::hidden_states).
        hidden_states: bool => hidden_states;
        /// Sets [`max_bytes`](Self::max_bytes).
        max_bytes: usize => max_bytes;
    }
}

impl From<GenerateConfig> for InspectConfig {
    /// Takes over the choice of the adapter.
    fn from(config: GenerateConfig) -> Self {
        Self { adapter: config.adapter, base_model: config.base_model, ..Self::default() }
    }
}

/// The result of an inspection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The prompt's tokens, `[seq_len]`.
    pub tokens: Vec<u32>,
    /// Keys and queries.
    pub snapshot: AttentionSnapshot,
    /// Attention weights, if asked for: `[layer][query head][seq_len * seq_len]`, a row for each token. A row sums to
    /// 1, or to less in models with attention sinks.
    pub attention: Vec<Vec<Vec<f32>>>,
    /// Hidden states, if asked for: the input of each layer, then the input of the head, after the final norm:
    /// `[num_layers + 1][seq_len * hidden_size]`.
    pub hidden_states: Vec<Vec<f32>>,
}
