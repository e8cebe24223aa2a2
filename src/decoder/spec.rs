use crate::kernels::attention::Heads;

/// Everything an architecture decides, in the terms of this decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub architecture: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; each serves `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Positions the model was trained for.
    pub max_positions: usize,
    pub norm_eps: f64,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub out_bias: bool,
    pub mlp_bias: bool,
    /// Whether the queries and keys of each head are normalised.
    pub qk_norm: bool,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    pub rope: RopeSpec,
    /// Layers whose queries and keys are not turned.
    pub layers_without_rope: Vec<usize>,
}

impl Spec {
    pub fn heads(&self) -> Heads {
        Heads { num_heads: self.num_heads, num_kv_heads: self.num_kv_heads, head_dim: self.head_dim }
    }
}

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the frequencies are stretched for longer contexts than those of the first training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated
    /// (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_positions: f64,
    },
    /// "NTK by parts" ([YaRN](https://arxiv.org/abs/2309.00071), section 3.2).
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_positions: f64,
        attention_factor: f64,
        truncate: bool,
    },
    /// Each frequency is divided by its own factor, `[head_dim / 2]`.
    Factors(Vec<f32>),
}
