//! The common part of most architectures: Llama's keys.

use super::rope_config;
use crate::{
    Result,
    decoder::{
        Spec,
        layout::Layout,
        spec::{
            AttentionSpec, DenseSpec, ExpertsSpec, HeadSpec, LayerSpec, MixerSpec, MlpSpec, NormOver, NormPlacement,
            NormSpec, QkNorm, RopeSpec,
        },
    },
    kernels::elementwise::{Activation, NormKind, RopeStyle},
    weights::Config,
};

/// More than any model has, and few enough to describe each.
const MAX_LAYERS: usize = 4096;

/// A llama with the sizes, biases, activation and rope that the configuration names, all under the keys that
/// Llama's has. Where it names no `head_dim`, heads share the hidden size.
pub fn spec(config: &Config, architecture: &'static str) -> Result<Spec> {
    let mut spec = without_rope(config, architecture)?;
    let rope = rope_config::spec(config, rope_config::FULL, spec.max_positions, spec.head_dim())?;
    spec.max_positions = rope_config::context(config, &rope, spec.max_positions)?;
    spec.ropes.push(rope);
    spec.each_attention(|attention| attention.rope = Some(0));
    Ok(spec)
}

/// [`spec`] without a rope, for architectures that encode positions otherwise.
pub fn without_rope(config: &Config, architecture: &'static str) -> Result<Spec> {
    let hidden_size = config.size("hidden_size")?;
    let num_heads = config.size("num_attention_heads")?;
    let num_kv_heads = config.opt_usize("num_key_value_heads")?.unwrap_or(num_heads);
    if num_kv_heads == 0 || num_heads % num_kv_heads != 0 {
        return Err(config.bad("num_key_value_heads", &format!("does not divide the {num_heads} query heads")));
    }
    let head_dim = config.opt_usize("head_dim")?.unwrap_or(hidden_size / num_heads);
    if head_dim == 0 {
        return Err(config.bad("head_dim", "at least 1 is needed"));
    }
    let num_layers = config.size("num_hidden_layers")?;
    if num_layers > MAX_LAYERS {
        return Err(config.bad("num_hidden_layers", &format!("more than {MAX_LAYERS}")));
    }
    let attention_bias = config.bool_or("attention_bias", false)?;
    let mlp = MlpSpec::Dense(dense(config, "intermediate_size")?);
    let attention = AttentionSpec {
        num_heads,
        num_kv_heads,
        head_dim,
        window: None,
        rope: None,
        scale: (head_dim as f64).sqrt().recip(),
        softcap: None,
        qkv_bias: attention_bias,
        out_bias: config.bool_or("attention_out_bias", attention_bias)?,
        qk_norm: None,
        sinks: false,
        temperature: None,
        alibi: None,
        clip: None,
    };
    let layer = LayerSpec { mixer: MixerSpec::Attention(attention), mlp };
    Ok(Spec {
        architecture,
        vocab_size: config.size("vocab_size")?,
        hidden_size,
        embedding_size: hidden_size,
        max_positions: config.size("max_position_embeddings")?,
        embedding_scale: 1.0,
        learned_positions: false,
        embedding_norm: false,
        norm: NormSpec { kind: NormKind::RmsNorm, weight: true, bias: false, eps: config.positive("rms_norm_eps")? },
        ropes: Vec::new(),
        layers: vec![layer; num_layers],
        norm_placement: NormPlacement::PRE_NORM,
        final_norm: true,
        residual_scale: 1.0,
        head: HeadSpec { tied: config.bool_or("tie_word_embeddings", false)?, bias: false, scale: 1.0, softcap: None },
        layout: Layout::LLAMA,
        hub_layout: None,
    })
}

/// A gated network; `size` is the key of its inner size.
pub fn dense(config: &Config, size: &str) -> Result<DenseSpec> {
    let intermediate_size = config.size(size)?;
    let activation = activation(config)?;
    Ok(DenseSpec { intermediate_size, gated: true, activation, bias: config.bool_or("mlp_bias", false)? })
}

fn activation(config: &Config) -> Result<Activation> {
    let key = "hidden_act";
    Ok(match config.opt_str(key)?.unwrap_or("silu") {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        _ => return Err(config.bad(key, "not an activation of this version: silu, gelu, gelu_new, relu, relu2")),
    })
}

impl Spec {
    /// Gives layers the window of the configuration, if it has one: those it names in `layer_types`, else those that
    /// `slides` says.
    pub(super) fn slide(mut self, config: &Config, slides: impl Fn(usize) -> bool) -> Result<Self> {
        let window = config.opt_usize("sliding_window")?;
        let count = self.layers.len();
        let kinds = config.opt_strs("layer_types")?;
        if let Some(kinds) = kinds.as_ref().filter(|kinds| kinds.len() != count) {
            return Err(config.bad("layer_types", &format!("{} entries for {count} layers", kinds.len())));
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let slides = match kinds.as_ref().map(|kinds| kinds[index]) {
                None => slides(index),
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                Some(kind) => return Err(config.bad("layer_types", &format!("{kind} is not a kind of this version"))),
            };
            let window = window.filter(|_| slides);
            layer.mixer.attention_mut().into_iter().for_each(|attention| attention.window = window);
            if window == Some(0) {
                return Err(config.bad("sliding_window", "at least 1 is needed"));
            }
        }
        Ok(self)
    }

    /// Norms that take the mean away first.
    pub(super) fn layer_norm(mut self, bias: bool) -> Self {
        self.norm = NormSpec { kind: NormKind::LayerNorm, bias, ..self.norm };
        self
    }

    /// Normalizes queries and keys, before their rotation, as the hidden states are.
    pub(super) fn normalize_queries_and_keys(&mut self, over: NormOver) {
        let norm = self.norm;
        self.each_attention(|attention| attention.qk_norm = Some(QkNorm { over, norm, after_rope: false }));
    }

    /// Changes the feed-forward network of all layers.
    pub(super) fn dense(mut self, change: impl Fn(&mut DenseSpec)) -> Self {
        for layer in &mut self.layers {
            if let MlpSpec::Dense(dense) = &mut layer.mlp {
                change(dense);
            }
        }
        self
    }

    /// Puts experts into all layers.
    pub(super) fn experts(mut self, experts: ExpertsSpec) -> Self {
        let experts = MlpSpec::Experts(experts);
        self.layers.iter_mut().for_each(|layer| layer.mlp = experts.clone());
        self
    }

    /// Encodes positions in layers with windows only.
    pub(super) fn rope_in_windows(mut self) -> Self {
        self.each_attention(|attention| attention.rope = attention.window.map(|_| 0));
        self
    }

    /// Encodes positions in layers with windows in another way.
    pub(super) fn local_rope(mut self, local: RopeSpec) -> Self {
        self.ropes.push(local);
        self.each_attention(|attention| attention.rope = Some(usize::from(attention.window.is_some())));
        self
    }

    /// Turns neighbors, not halves.
    pub(super) fn interleaved(mut self) -> Self {
        self.ropes.iter_mut().for_each(|rope| rope.style = RopeStyle::Interleaved);
        self
    }
}
