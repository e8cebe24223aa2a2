//! The names and forms of a checkpoint's tensors.

use super::Spec;
use crate::{adapters::ModuleNames, kernels::elementwise::RopeStyle};

/// The names of tensors and the forms they are stored in.
#[derive(Debug, Clone)]
pub struct Layout {
    pub names: Names,
    /// Prefixes of names, each with an alternative that some files use.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// The prefix in this checkpoint, if it is an unusual one.
    pub stored: Option<StoredPrefix>,
    /// The prefix of names, and the prefix in the larger model that this one is a part of, if it is.
    pub inside: Option<(&'static str, &'static str)>,
    /// Rows of the position embedding before the first position's.
    pub first_position: usize,
    /// Whether weights of norms are stored as differences from 1.
    pub norm_less_one: bool,
    /// Whether the layers' matrices are `[inputs, outputs]`.
    pub transposed: bool,
    /// The same of experts' matrices that are bare parameters, not modules.
    pub experts_transposed: bool,
    /// Whether a fused matrix of gate and up interleaves their rows.
    pub gate_up_in_turn: bool,
    /// Whether a fused matrix of queries, keys and values is grouped by key heads.
    pub qkv_by_head: bool,
    /// The order of the rotary pairs in query and key rows.
    pub rope_style: RopeStyle,
    /// The layout of mlx-lm's directories, if it differs. The name of the embedding tells it.
    pub mlx: Option<&'static Layout>,
}

impl Layout {
    /// Llama's Hugging Face directories.
    pub const LLAMA: Self = Self {
        names: Names::LLAMA,
        prefixes: &[("model.", ""), ("model.", "model.language_model."), ("", "language_model.")],
        stored: None,
        inside: None,
        first_position: 0,
        norm_less_one: false,
        transposed: false,
        experts_transposed: false,
        gate_up_in_turn: false,
        qkv_by_head: false,
        rope_style: RopeStyle::NeoX,
        mlx: None,
    };

    /// How modules are called in files of this family.
    pub fn module_names(&self) -> ModuleNames {
        ModuleNames { prefixes: self.prefixes, inside: self.inside }
    }

    /// The name of a module in this checkpoint.
    pub fn stored_name(&self, module: &str) -> String {
        match &self.stored {
            Some(stored) if module == self.names.head => stored.head.clone(),
            Some(stored) => match module.strip_prefix(self.names.base()) {
                Some(rest) => format!("{}{rest}", stored.base),
                None => module.to_owned(),
            },
            None => module.to_owned(),
        }
    }

    /// The layout of an architecture's GGUF files. llama.cpp's converter renames tensors and splits fused ones, and
    /// for some architectures interleaves the rotary pairs of query and key rows.
    pub fn gguf(spec: &Spec) -> Self {
        let turned = matches!(
            spec.architecture,
            "llama" | "mixtral" | "smollm3" | "granite" | "granitemoe" | "olmo" | "arcee" | "ministral3"
        );
        let rope_style = if turned { RopeStyle::Interleaved } else { RopeStyle::NeoX };
        let mut names = Names::GGUF;
        match spec.architecture {
            "seed_oss" | "gpt_oss" | "glm4_moe" => names.mlp_norm = names.attention_out_norm,
            "falcon" if spec.norm_placement.mlp_norm => {
                (names.attention_norm, names.mlp_norm) = ("attn_norm_2", "attn_norm")
            }
            _ => {}
        }
        Self { names, rope_style, ..Self::LLAMA }
    }
}

/// The prefixes of names in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPrefix {
    /// In place of [`Names::base`].
    pub base: String,
    /// The whole name of the head.
    pub head: String,
}

/// The modules of a checkpoint: each has a `weight` and may have a `bias`. Modules of layers are below `layers.0`,
/// `layers.1`, …. In place of `module.weight` and `module.bias` there may be `module` and `module_bias`.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    pub embedding: &'static str,
    pub positions: &'static str,
    /// From token vectors to the hidden size.
    pub project_in: &'static str,
    pub project_out: &'static str,
    pub embedding_norm: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// The fused matrix of all three.
    pub qkv: &'static str,
    /// A `{}` in this and the next stands for a head, if each head has its own module.
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    pub sinks: &'static str,
    pub out: &'static str,
    pub attention_out_norm: &'static str,
    pub mlp_norm: &'static str,
    pub mlp: MlpNames<'static>,
    pub mlp_out_norm: &'static str,
    pub router: &'static str,
    /// A module and its parameter.
    pub router_biases: (&'static str, &'static str),
    /// A `{}` stands for an expert. Without it, one tensor holds the matrices of all experts.
    pub expert: MlpNames<'static>,
    /// As `expert`, in files with one tensor for all experts.
    pub experts: MlpNames<'static>,
    pub shared: MlpNames<'static>,
    pub shared_gate: &'static str,
}

/// The modules of a feed-forward network.
#[derive(Debug, Clone, Copy)]
pub struct MlpNames<'a> {
    pub gate: &'a str,
    pub up: &'a str,
    /// The fused matrix of both.
    pub gate_up: &'a str,
    pub down: &'a str,
}

impl Names {
    /// The common prefix of all modules but the head, if there is one.
    pub fn base(&self) -> &'static str {
        self.embedding.find('.').map_or("", |end| &self.embedding[..=end])
    }

    /// The name in another layout of `module`, which holds several linear maps, or one.
    pub fn translate(&self, module: &str, several: bool, other: &Self) -> Option<&'static str> {
        let at = self.linears(several).iter().position(|name| *name == module)?;
        Some(other.linears(several)[at])
    }

    fn linears(&self, several: bool) -> Vec<&'static str> {
        let networks = [&self.mlp, &self.shared];
        if several {
            return networks.iter().map(|network| network.gate_up).chain([self.qkv]).collect();
        }
        let of_networks = networks.iter().flat_map(|network| [network.gate, network.up, network.down]);
        of_networks.chain([self.head, self.query, self.key, self.value, self.out, self.shared_gate]).collect()
    }

    pub const LLAMA: Self = Self {
        embedding: "model.embed_tokens",
        positions: "",
        project_in: "",
        project_out: "",
        embedding_norm: "",
        norm: "model.norm",
        head: "lm_head",
        layers: "model.layers",
        attention_norm: "input_layernorm",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        qkv: "self_attn.qkv_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        sinks: "self_attn.sinks",
        out: "self_attn.o_proj",
        attention_out_norm: "post_attention_layernorm",
        mlp_norm: "post_attention_layernorm",
        mlp: MlpNames { gate: "mlp.gate_proj", up: "mlp.up_proj", gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
        mlp_out_norm: "post_feedforward_layernorm",
        router: "mlp.gate",
        router_biases: ("mlp.gate", "e_score_correction_bias"),
        expert: MlpNames {
            gate: "mlp.experts.{}.gate_proj",
            up: "mlp.experts.{}.up_proj",
            gate_up: "mlp.experts.{}.gate_up_proj",
            down: "mlp.experts.{}.down_proj",
        },
        experts: MlpNames {
            gate: "mlp.switch_mlp.gate_proj",
            up: "mlp.switch_mlp.up_proj",
            gate_up: "mlp.switch_mlp.gate_up_proj",
            down: "mlp.switch_mlp.down_proj",
        },
        shared: MlpNames {
            gate: "mlp.shared_expert.gate_proj",
            up: "mlp.shared_expert.up_proj",
            gate_up: "mlp.shared_expert.gate_up_proj",
            down: "mlp.shared_expert.down_proj",
        },
        shared_gate: "mlp.shared_expert_gate",
    };

    pub const GGUF: Self = Self {
        embedding: "token_embd",
        positions: "position_embd",
        project_in: "",
        project_out: "",
        embedding_norm: "token_embd_norm",
        norm: "output_norm",
        head: "output",
        layers: "blk",
        attention_norm: "attn_norm",
        query: "attn_q",
        key: "attn_k",
        value: "attn_v",
        qkv: "attn_qkv",
        query_norm: "attn_q_norm",
        key_norm: "attn_k_norm",
        sinks: "attn_sinks",
        out: "attn_output",
        attention_out_norm: "post_attention_norm",
        mlp_norm: "ffn_norm",
        mlp: MlpNames { gate: "ffn_gate", up: "ffn_up", gate_up: "ffn_up", down: "ffn_down" },
        mlp_out_norm: "post_ffw_norm",
        router: "ffn_gate_inp",
        router_biases: ("exp_probs_b", "bias"),
        expert: MlpNames { gate: "ffn_gate.{}", up: "ffn_up.{}", gate_up: "ffn_gate_up.{}", down: "ffn_down.{}" },
        experts: MlpNames {
            gate: "ffn_gate_exps",
            up: "ffn_up_exps",
            gate_up: "ffn_gate_up_exps",
            down: "ffn_down_exps",
        },
        shared: MlpNames {
            gate: "ffn_gate_shexp",
            up: "ffn_up_shexp",
            gate_up: "ffn_gate_up_shexp",
            down: "ffn_down_shexp",
        },
        shared_gate: "ffn_gate_inp_shexp",
    };
}
