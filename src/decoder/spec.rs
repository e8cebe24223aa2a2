use super::layout::Layout;
use crate::kernels::{
    attention::{Heads, Scoring},
    elementwise::{Activation, NormKind, RopeStyle},
};

/// Everything an architecture decides, in the terms of this decoder.
#[derive(Debug, Clone)]
pub struct Spec {
    pub architecture: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// What a token's vector has; if it is another number, matrices map it to the hidden size and back.
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
    pub attention: AttentionSpec,
    /// The encodings of positions that layers choose from.
    pub ropes: Vec<RopeSpec>,
    pub layers: Vec<LayerSpec>,
    pub norm_placement: NormPlacement,
    /// Whether what the last layer gives is normalized.
    pub final_norm: bool,
    /// Multiplies what attention and feed-forward networks add to the residual stream.
    pub residual_scale: f32,
    pub head: HeadSpec,
    /// How the checkpoint stores all this.
    pub layout: Layout,
    /// How Hugging Face directories do, where that is another way: adapters are made for those.
    pub hub_layout: Option<Layout>,
}

impl Spec {
    pub fn heads(&self) -> Heads {
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = self.attention;
        Heads { num_heads, num_kv_heads, head_dim }
    }

    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// How a layer holds queries against keys.
    pub fn scoring(&self, layer: &LayerSpec) -> Scoring<'static> {
        let AttentionSpec { scale, softcap, alibi, .. } = self.attention;
        let (scale, alibi) = ((scale * layer.scale) as f32, alibi.map(|alibi| alibi as f32));
        Scoring { scale, softcap, window: layer.window, alibi, sinks: None }
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

#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; each serves `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// What dot products of queries and keys are multiplied by.
    pub scale: f64,
    /// Bounds these products.
    pub softcap: Option<f32>,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub out_bias: bool,
    pub qk_norm: Option<QkNorm>,
    /// Whether each query head has a number that takes part in the softmax as the score of a key without a value.
    pub sinks: bool,
    /// How queries grow with their positions.
    pub temperature: Option<AttentionTemperature>,
    /// Multiplies the slopes of linear biases ([ALiBi](https://arxiv.org/abs/2108.12409)), if there are any.
    pub alibi: Option<f64>,
    /// Bounds the numbers of queries, keys and values.
    pub clip: Option<f64>,
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
    /// Whether after their positions have turned them, and not before.
    pub after_rope: bool,
}

/// What is normalized together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOver {
    /// Each head, all with the same weights.
    Head,
    /// Each head with its own weights.
    EachHead,
    /// All heads together.
    All,
}

/// What differs between layers.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// The tokens that a token attends to, itself and those before it; `None`: all.
    pub window: Option<usize>,
    /// Which of [`Spec::ropes`] turns queries and keys, if any.
    pub rope: Option<usize>,
    /// Multiplies [`AttentionSpec::scale`].
    pub scale: f64,
    pub mlp: MlpSpec,
}

/// The norms of a layer and what they and the residual stream are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormPlacement {
    /// Whether the attention's input is normalized.
    pub attention_norm: bool,
    /// Whether its output is.
    pub attention_out_norm: bool,
    /// Whether the feed-forward network's input is. If not, and both are parallel, it is what the attention's is.
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

/// Of many networks, each token goes through a few that a router chooses
/// ([paper](https://arxiv.org/abs/1701.06538)).
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsSpec {
    pub num_experts: usize,
    pub per_token: usize,
    pub router_bias: bool,
    /// What each of them is.
    pub expert: DenseSpec,
    /// Whether the scores of those chosen are made to sum to 1.
    pub normalize: bool,
    pub routing: RoutingSpec,
    /// A network that all tokens go through.
    pub shared: Option<SharedSpec>,
}

/// How a router chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoutingSpec {
    pub gating: Gating,
    /// Whether biases are added to the scores for the choice alone.
    pub biases: bool,
    pub groups: Option<ExpertGroups>,
    /// Multiplies the weights of those chosen.
    pub weight_scale: f32,
}

impl RoutingSpec {
    /// The most likely ones.
    pub const SOFTMAX: Self = Self { gating: Gating::Softmax, biases: false, groups: None, weight_scale: 1.0 };
}

/// What makes scores of a router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    Softmax,
    Sigmoid,
}

/// Experts are in as many groups of the same size, of which those of a token are in a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    pub count: usize,
    pub per_token: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SharedSpec {
    pub network: DenseSpec,
    /// Whether the sigmoid of a projection multiplies its output.
    pub gated: bool,
}

/// What turns the last hidden vectors into logits.
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

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    /// Numbers of a head that are turned, from the first on.
    pub dims: usize,
    pub style: RopeStyle,
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
    /// The base grows with a sequence that is longer than `original_positions` ("dynamic NTK", the
    /// [YaRN](https://arxiv.org/abs/2309.00071) paper's section 3.3).
    Dynamic {
        factor: f64,
        original_positions: usize,
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
