//! Everything an architecture decides.

use std::sync::Arc;

use super::{layout::Layout, recurrence::RecurrenceSpec};
use crate::kernels::{
    attention::{AttentionScoring, Heads, KvDtype},
    elementwise::{Activation, NormKind, RopeStyle},
};

/// Everything an architecture decides, in the terms of this decoder.
#[derive(Debug, Clone)]
pub struct Spec {
    pub architecture: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Elements of a token's vector. If they differ from the hidden size, matrices map to it and back.
    pub embedding_size: usize,
    /// Positions the model was trained for.
    pub max_positions: usize,
    /// Multiplies the vectors of tokens.
    pub embedding_scale: f64,
    /// Whether there is a vector for each position, which is added to the token's.
    pub learned_positions: bool,
    /// Whether the sum of both is normalized.
    pub embedding_norm: bool,
    pub norm: NormSpec,
    /// The encodings of positions that layers choose from.
    pub ropes: Vec<RopeSpec>,
    pub layers: Vec<LayerSpec>,
    pub norm_placement: NormPlacement,
    /// Whether the last layer's output is normalized.
    pub final_norm: bool,
    /// Multiplies the outputs of mixers and feed-forward networks before they are added to the residual stream.
    pub residual_scale: f32,
    pub head: HeadSpec,
    /// The layout of the checkpoint.
    pub layout: Layout,
    /// The layout of Hugging Face directories, if it differs: adapters are made for it.
    pub hub_layout: Option<Layout>,
}

impl Spec {
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Attention layers, in order.
    pub fn attentions(&self) -> impl Iterator<Item = &AttentionSpec> {
        self.layers.iter().filter_map(|layer| layer.mixer.attention())
    }

    /// Changes the attention of all layers that have one.
    pub fn each_attention(&mut self, change: impl FnMut(&mut AttentionSpec)) {
        self.layers.iter_mut().filter_map(|layer| layer.mixer.attention_mut()).for_each(change);
    }

    /// Bytes of one block of the paged cache, in all layers.
    pub fn block_bytes(&self, kv_dtype: KvDtype) -> usize {
        self.sum_over_caches(|cache| cache.block_bytes(kv_dtype))
    }

    /// Bytes of one sequence's recurrent states, in all layers.
    pub fn state_bytes(&self) -> usize {
        self.sum_over_caches(|cache| cache.state_bytes())
    }

    fn sum_over_caches(&self, bytes: impl Fn(LayerCachePlan) -> usize) -> usize {
        // Sizes that no tensor has been held against yet may be absurd.
        self.layers.iter().map(|layer| bytes(layer.mixer.cache())).fold(0, usize::saturating_add)
    }

    /// Head size of the first attention layer; 0 without one.
    pub fn head_dim(&self) -> usize {
        self.attentions().next().map_or(0, |attention| attention.head_dim)
    }
}

/// How vectors are normalized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// LayerNorm or RMSNorm.
    pub kind: NormKind,
    /// Whether there are weights, or all are 1.
    pub weight: bool,
    pub bias: bool,
    pub eps: f64,
}

/// The attention of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; each serves `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Tokens that a token attends to, itself and earlier ones; `None`: all.
    pub window: Option<usize>,
    /// The entry of [`Spec::ropes`] that rotates queries and keys, if any.
    pub rope: Option<usize>,
    /// Multiplies the dot products of queries and keys.
    pub scale: f64,
    /// Bounds these products by `cap * tanh(x / cap)`.
    pub softcap: Option<f32>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub out_bias: bool,
    pub qk_norm: Option<QkNorm>,
    /// Whether each query head has an attention sink: a learned score in the softmax that belongs to no key.
    pub sinks: bool,
    /// Scales queries by their positions.
    pub temperature: Option<AttentionTemperature>,
    /// Multiplies the slopes of linear biases ([ALiBi](https://arxiv.org/abs/2108.12409)), if there are any.
    pub alibi: Option<f64>,
    /// Clamps the elements of queries, keys and values.
    pub clip: Option<f64>,
}

impl AttentionSpec {
    pub fn heads(&self) -> Heads {
        Heads { num_heads: self.num_heads, num_kv_heads: self.num_kv_heads, head_dim: self.head_dim }
    }

    /// How queries are scored against keys; sinks are weights, and come later.
    pub fn scoring(&self) -> AttentionScoring<'static> {
        let (scale, alibi) = (self.scale as f32, self.alibi.map(|alibi| alibi as f32));
        AttentionScoring { scale, softcap: self.softcap, window: self.window, alibi, sinks: None }
    }
}

/// Queries are multiplied by `1 + beta * ln(1 + floor(position / positions))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionTemperature {
    pub beta: f64,
    pub positions: usize,
}

impl AttentionTemperature {
    pub fn at(&self, position: u32) -> f32 {
        (1.0 + self.beta * (1.0 + (position as usize / self.positions) as f64).ln()) as f32
    }
}

/// How queries and keys are normalized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNorm {
    pub over: NormOver,
    pub norm: NormSpec,
    /// Whether after the rotation by positions, not before.
    pub after_rope: bool,
}

/// The elements that are normalized together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOver {
    /// Each head, all with the same weights.
    Head,
    /// Each head with its own weights.
    EachHead,
    /// All heads together.
    All,
}

/// A layer: a mixer, which moves information between tokens, and a feed-forward network.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    pub mixer: MixerSpec,
    pub mlp: MlpSpec,
}

/// The mixer of one layer.
#[derive(Debug, Clone)]
pub enum MixerSpec {
    Attention(AttentionSpec),
    Recurrent(Arc<dyn RecurrenceSpec>),
}

impl MixerSpec {
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match self {
            Self::Attention(attention) => Some(attention),
            Self::Recurrent(_) => None,
        }
    }

    pub fn attention_mut(&mut self) -> Option<&mut AttentionSpec> {
        match self {
            Self::Attention(attention) => Some(attention),
            Self::Recurrent(_) => None,
        }
    }

    /// The plan of the layer's cache.
    pub fn cache(&self) -> LayerCachePlan {
        match self {
            Self::Attention(attention) => LayerCachePlan::Paged(attention.heads()),
            Self::Recurrent(recurrence) => LayerCachePlan::States(recurrence.state_len()),
        }
    }
}

/// The cache of one layer: its state of a sequence between passes.
#[derive(Debug, Clone, Copy)]
pub enum LayerCachePlan {
    /// Keys and values of these heads for each token, in the blocks of the paged cache.
    Paged(Heads),
    /// A recurrent state of so many f32 values, in a slot of its own.
    States(usize),
}

impl LayerCachePlan {
    /// Bytes of one block of the paged cache.
    pub fn block_bytes(&self, kv_dtype: KvDtype) -> usize {
        match self {
            Self::Paged(heads) => kv_dtype.block_bytes(*heads),
            Self::States(_) => 0,
        }
    }

    /// Bytes of one state.
    pub fn state_bytes(&self) -> usize {
        match self {
            Self::Paged(_) => 0,
            Self::States(len) => len.saturating_mul(size_of::<f32>()),
        }
    }
}

/// Where a layer has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormPlacement {
    /// Whether the attention's input is normalized.
    pub attention_norm: bool,
    /// Whether its output is.
    pub attention_out_norm: bool,
    /// Whether the feed-forward network's input is. If not, and both are parallel, both share the mixer's input.
    pub mlp_norm: bool,
    pub mlp_out_norm: bool,
    /// Whether norms of outputs are of their sum with the residual stream.
    pub norm_of_sum: bool,
    /// Whether the feed-forward network runs beside the attention and not after it.
    pub parallel: bool,
}

impl NormPlacement {
    /// Norms before both.
    pub const PRE_NORM: Self = Self {
        attention_norm: true,
        attention_out_norm: false,
        mlp_norm: true,
        mlp_out_norm: false,
        norm_of_sum: false,
        parallel: false,
    };
    /// Norms after both.
    pub const POST_NORM: Self =
        Self { attention_norm: false, attention_out_norm: true, mlp_norm: false, mlp_out_norm: true, ..Self::PRE_NORM };
    /// Norms of the residual stream after both.
    pub const SUM_NORM: Self = Self { norm_of_sum: true, ..Self::POST_NORM };
    /// Norms before and after both.
    pub const SANDWICH: Self = Self { attention_out_norm: true, mlp_out_norm: true, ..Self::PRE_NORM };
    /// One norm before both at once.
    pub const PARALLEL: Self = Self { mlp_norm: false, parallel: true, ..Self::PRE_NORM };
}

/// A feed-forward network.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    Dense(DenseSpec),
    Experts(ExpertsSpec),
}

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))`.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseSpec {
    pub intermediate_size: usize,
    pub gated: bool,
    pub activation: Activation,
    pub bias: bool,
}

/// A mixture of experts: a router chooses a few networks for each token
/// ([paper](https://arxiv.org/abs/1701.06538)).
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    pub num_experts: usize,
    pub per_token: usize,
    pub router_bias: bool,
    /// The network of each expert.
    pub expert: DenseSpec,
    /// Whether the weights of a token's experts are normalized to sum to 1.
    pub normalize: bool,
    pub routing: RoutingSpec,
    /// A network that all tokens go through.
    pub shared: Option<SharedSpec>,
}

/// The choice of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingSpec {
    pub gating: Gating,
    /// Whether biases are added to the scores for the choice alone.
    pub biases: bool,
    pub groups: Option<ExpertGroups>,
    /// Multiplies the weights of the chosen experts.
    pub weight_scale: f32,
}

impl RoutingSpec {
    /// The most likely ones.
    pub const SOFTMAX: Self = Self { gating: Gating::Softmax, biases: false, groups: None, weight_scale: 1.0 };
}

/// The function from a router's logits to scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    Softmax,
    Sigmoid,
}

/// Group-limited routing: experts are in `count` groups of one size, and a token uses experts of the best
/// `per_token` groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    pub count: usize,
    pub per_token: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SharedSpec {
    pub network: DenseSpec,
    /// Whether the sigmoid of a projection gates its output.
    pub gated: bool,
}

/// The output projection, from hidden states to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSpec {
    /// Whether it is the embedding matrix.
    pub tied: bool,
    pub bias: bool,
    /// Multiplies the logits.
    pub scale: f32,
    /// Bounds them.
    pub softcap: Option<f32>,
}

/// Rotary position embedding of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    /// Elements of a head that are rotated, from the first on.
    pub dims: usize,
    pub style: RopeStyle,
    pub scaling: RopeScaling,
}

/// How frequencies are scaled for contexts that are longer than in pretraining.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        factor: f64,
    },
    /// The base grows with a sequence that is longer than `original_positions` ("dynamic NTK", the
    /// [YaRN](https://arxiv.org/abs/2309.00071) paper's section 3.3).
    Dynamic {
        factor: f64,
        original_positions: usize,
    },
    /// Low frequencies are divided by `factor`, high ones kept, and in between they are interpolated (Llama 3.1).
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
    /// Each frequency is divided by its own factor, which is another one in sequences longer than
    /// `original_positions` ([LongRoPE](https://arxiv.org/abs/2402.13753)).
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        original_positions: usize,
        attention_factor: f64,
    },
    /// Each frequency is divided by its own factor.
    Factors(Vec<f32>),
}
