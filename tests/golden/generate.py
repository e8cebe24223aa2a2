"""Writes the golden files of the tests: tiny random models with what independent references make of them.

    python generate.py OUT_DIR [MODEL ...]        # OUT_DIR is this directory for the committed files

Written with Python 3.11, transformers 5.23.0, torch 2.15.0 (CPU), tokenizers 0.23.3, safetensors 0.8.0
and gguf 0.19.0. Everything is seeded: the same versions write the same files. With names, only
these models are written.

OUT_DIR/<model>/      a Hugging Face directory and expected.json, computed by transformers in f32
OUT_DIR/gguf/         GGUF files and one expected.json, which has for each file what transformers computes
                      in f32 from the dequantised weights
OUT_DIR/templates/    chat templates with conversations and their renders by transformers

An expectation has
  prompts        text, ids (with the tokenizer's own special tokens), logits after the last id, and 24 greedy
                 ids (past any end of text) with their text and the margins of the best logit over the second
  encode_cases   texts and their ids, with the tokenizer's own special tokens
  decode_cases   ids and their texts without special tokens
  chat           if the model has a template: messages, their render with a generation prompt, and its ids

common.py, gguf_files.py, gguf_tokenizers.py, quantized.py, templates.py and families.py are parts of this script;
smollm2.py and gguf_architectures.py are others.
"""

import sys

sys.dont_write_bytecode = True

import itertools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import common
import gguf_files
import gguf_tokenizers
import quantized
import templates

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Où est 世界? 🚀\n"},
]


@dataclass
class Model:
    """A model to write: `config` are the keys of config.json, of transformers 4 if `v4`. It is a llama unless
    they have a `model_type`."""

    name: str
    tokenizer: object
    config: dict
    dtype: torch.dtype = torch.float32
    v4: bool = False
    shard: str = "1GB"
    chat_template: str | None = None
    eos_token_id: int | list = 2
    texts: list = field(default_factory=lambda: common.PROMPTS)
    # The implementation of attention that the reference takes.
    attention: str = "eager"
    # Whether greedy tokens are computed with a cache, where that makes a difference.
    cached: bool = False
    # The token that begins texts and ends answers of a tokenizer without a tokenizer.json, if that is to be written.
    vocabulary: str | None = None
    # The `model_type` of a multimodal model, what names of tensors begin with, and what they are to begin with there.
    inside: tuple | None = None


def shape(hidden, ff, heads, kv_heads, **more):
    """The keys all the configurations have."""
    config = {
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ff,
        "max_position_embeddings": 512,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    return config | more


def models():
    gpt2, llama3, spm = common.gpt2_tokenizer(), common.llama3_tokenizer(), common.spm_tokenizer()
    return [
        Model(
            "mha_tied", gpt2,
            shape(48, 80, 4, 4, tie_word_embeddings=True, rope_theta=10000.0, rope_scaling=None),
            v4=True, chat_template=templates.CHATML,
        ),
        Model(
            "gqa_llama3", llama3,
            shape(48, 72, 6, 2, head_dim=16, rope_parameters={
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }),
            chat_template=templates.LLAMA3, eos_token_id=[316, 319],
        ),
        Model(
            # The vocabulary is padded beyond the tokenizer's.
            "bias_linear", gpt2,
            shape(40, 56, 5, 1, vocab_size=328, attention_bias=True, mlp_bias=True, rope_theta=5000.0,
                  rope_scaling={"type": "linear", "factor": 2.5}),
            dtype=torch.bfloat16, v4=True,
        ),
        Model(
            "mqa_yarn", gpt2,
            shape(64, 96, 2, 1, max_position_embeddings=128, rope_parameters={
                "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.25,
                "original_max_position_embeddings": 32,
            }),
            dtype=torch.float16, shard="60KB",
        ),
        Model(
            "mqa_yarn_v4", gpt2,
            shape(32, 48, 2, 1, max_position_embeddings=128, rope_theta=1000.0, rope_scaling={
                "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.35, "original_max_position_embeddings": 32,
            }),
            dtype=torch.float16, v4=True, texts=[common.LONG],
        ),
        Model(
            "yarn_mscale", gpt2,
            shape(32, 48, 2, 2, max_position_embeddings=128, rope_parameters={
                "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "mscale": 1.5, "mscale_all_dim": 0.5,
                "truncate": False, "beta_fast": 4.0, "original_max_position_embeddings": 32,
            }),
            dtype=torch.float16, texts=[common.LONG],
        ),
        Model(
            "spm_gqa", spm,
            shape(32, 64, 4, 2, rope_theta=10000.0, rope_scaling=None),
            dtype=torch.bfloat16, v4=True, eos_token_id=[2, 300, 399],
        ),
        Model(
            "qwen2", gpt2,
            shape(48, 64, 6, 2, model_type="qwen2", tie_word_embeddings=True, use_sliding_window=False,
                  sliding_window=64, max_window_layers=1, rope_theta=1000.0, rope_scaling=None),
            v4=True,
        ),
        Model(
            "mistral_spm", spm,
            shape(40, 48, 4, 2, model_type="mistral", head_dim=14, sliding_window=None, rope_theta=3000.0),
            v4=True,
        ),
        Model(
            "smollm3", gpt2,
            shape(48, 56, 4, 2, model_type="smollm3", num_hidden_layers=3, no_rope_layers=[1, 0, 1],
                  tie_word_embeddings=True, pad_token_id=0,
                  rope_parameters={"rope_type": "default", "rope_theta": 700.0}),
        ),
        Model(
            "qwen3", gpt2,
            shape(40, 56, 6, 3, model_type="qwen3", head_dim=16, rms_norm_eps=1e-6, attention_bias=True,
                  rope_parameters={"rope_type": "default", "rope_theta": 2000.0}),
        ),
    ] + more_models(gpt2, spm)


def more_models(gpt2, spm):
    """Small ones, one and more of each other architecture."""
    b16, plain = torch.bfloat16, {"rope_type": "default", "rope_theta": 900.0}
    window = {"sliding_window": 11}
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
    layers = {"num_hidden_layers": 3}
    gelu = {"hidden_act": "gelu_pytorch_tanh"}

    def both(name, keys, v4, v5):
        """The same in both styles of configuration."""
        shared = shape(32, 48, 4, 2, model_type=name, **keys)
        return [
            Model(name + "_v4", gpt2, shared | {"rope_theta": 900.0} | v4, dtype=b16, v4=True),
            Model(name + "_v5", gpt2, shared | {"rope_parameters": plain} | v5, dtype=b16),
        ]

    gemma3 = shape(32, 40, 4, 2, model_type="gemma3_text", head_dim=10, query_pre_attn_scalar=7, **window, **layers,
                   hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
    # What GGUF has no keys for is as usual.
    usual = {"query_pre_attn_scalar": 10, "num_hidden_layers": 7, "rope_theta": 5000.0, "rope_local_base_freq": 300.0}
    long_factors = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 3.5]}
    phi = {"partial_rotary_factor": 0.75, "max_position_embeddings": 160, "original_max_position_embeddings": 20}
    phi |= {"pad_token_id": 0}
    neox = {"model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-4, "num_key_value_heads": None}
    oss = {"model_type": "gpt_oss", "num_experts_per_tok": 2, **window, "tie_word_embeddings": True}
    return [
        Model("dynamic", gpt2, shape(32, 48, 4, 2, max_position_embeddings=20, rope_theta=100.0,
              rope_scaling={"type": "dynamic", "factor": 8.0}), dtype=b16, v4=True, cached=True,
              # The reference goes on with the frequencies of the longest text so far.
              texts=[common.SHORT, common.LONG]),
        *both("mistral", window, {}, {"head_dim": 14}),
        *both("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, **window}, {"sliding_window": None}, {}),
        *both("qwen2_moe", {"num_experts": 6, **experts, **layers, "shared_expert_intermediate_size": 20},
              {"use_sliding_window": False, **window},
              {"norm_topk_prob": True, "decoder_sparse_step": 2, "use_sliding_window": True, "max_window_layers": 2, **window}),
        *both("qwen3_moe", {"num_experts": 6, **experts, **layers, "head_dim": 10},
              {"norm_topk_prob": True}, {"mlp_only_layers": [1], "use_sliding_window": True, **window}),
        Model("qwen2_windows", gpt2, shape(32, 48, 4, 1, model_type="qwen2", use_sliding_window=True, max_window_layers=1,
              **window, **layers, rope_parameters=plain), dtype=b16),
        Model("gemma_spm_v4", spm, shape(32, 40, 4, 1, model_type="gemma", head_dim=12, **gelu, tie_word_embeddings=True,
              rope_theta=900.0), dtype=b16, v4=True),
        Model("gemma2_v4", gpt2, shape(32, 40, 4, 2, model_type="gemma2", head_dim=10, query_pre_attn_scalar=10, **window,
              attn_logit_softcapping=3.0, final_logit_softcapping=4.0, hidden_activation="gelu_pytorch_tanh",
              tie_word_embeddings=True, **layers, rope_theta=10000.0), dtype=b16, v4=True),
        Model("gemma2_v5", gpt2, shape(32, 40, 4, 2, model_type="gemma2", head_dim=8, query_pre_attn_scalar=9, **window,
              attn_logit_softcapping=None, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, **layers,
              layer_types=["full_attention", "sliding_attention", "sliding_attention"], rope_parameters=plain), dtype=b16),
        Model("gemma3_v4", gpt2, gemma3 | dict(sliding_window_pattern=3, rope_theta=5000.0, rope_local_base_freq=300.0,
              rope_scaling={"rope_type": "linear", "factor": 4.0}), dtype=b16, v4=True),
        Model("gemma3_v5", gpt2, gemma3 | dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"],
              rope_parameters={"full_attention": plain | {"rope_theta": 8000.0}, "sliding_attention": plain}), dtype=b16),
        Model("gemma3_inside", gpt2, gemma3 | usual | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, dtype=b16, v4=True, inside=("gemma3", "", "language_model.")),
        Model("phi", gpt2, shape(32, 128, 4, 4, model_type="phi", hidden_act="gelu_new", layer_norm_eps=1e-4,
              partial_rotary_factor=0.5, rope_theta=10000.0), dtype=b16, v4=True),
        Model("phi3_v4", gpt2, shape(32, 48, 4, 2, model_type="phi3", pad_token_id=0, **window, rope_theta=900.0,
              rope_scaling=None), dtype=b16, v4=True),
        Model("phi3_long_v4", gpt2, shape(32, 48, 4, 2, model_type="phi3", **phi, rope_theta=900.0,
              rope_scaling={"type": "longrope", **long_factors}), dtype=b16, v4=True),
        Model("phi3_long_v5", gpt2, shape(32, 48, 4, 2, model_type="phi3", **(phi | {"partial_rotary_factor": None}),
              rope_parameters={"rope_type": "longrope", "rope_theta": 900.0, "partial_rotary_factor": 0.75, **long_factors,
                               "original_max_position_embeddings": 20}), dtype=b16),
        Model("olmo", gpt2, shape(32, 48, 4, 2, model_type="olmo", pad_token_id=0, rope_theta=900.0), dtype=b16, v4=True),
        *both("olmo2", {"pad_token_id": 0}, {"attention_bias": True}, {"tie_word_embeddings": True}),
        Model("olmo3", gpt2, shape(32, 48, 4, 2, model_type="olmo3", pad_token_id=0, **window,
              layer_types=["sliding_attention", "full_attention"], rope_parameters={
                  "full_attention": {"rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "beta_fast": 2.0,
                                     "original_max_position_embeddings": 32}, "sliding_attention": plain}), dtype=b16),
        *both("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4},
              {"logits_scaling": 0.7, "attention_bias": True}, {"logits_scaling": 2, "mlp_bias": True}),
        *both("starcoder2", {"norm_epsilon": 1e-4, **gelu}, {"sliding_window": None, "tie_word_embeddings": True},
              {"use_bias": False, **window}),
        *both("stablelm", {"layer_norm_eps": 1e-4}, {"partial_rotary_factor": 0.25, "use_qkv_bias": True},
              {"qk_layernorm": True, "use_parallel_residual": True, "rope_parameters": plain | {"partial_rotary_factor": 0.5}}),
        *both("glm4", {"attention_bias": True, "pad_token_id": 0}, {"partial_rotary_factor": 0.5, "head_dim": 8},
              {"rope_parameters": plain | {"partial_rotary_factor": 0.6}, "head_dim": 10}),
        Model("arcee", gpt2, shape(32, 48, 4, 2, model_type="arcee", hidden_act="relu2", rope_parameters=plain), dtype=b16),
        Model("ernie4_5", gpt2, shape(32, 48, 4, 2, model_type="ernie4_5", head_dim=10, use_bias=True, tie_word_embeddings=True,
              rope_theta=900.0), dtype=b16, v4=True),
        Model("helium", gpt2, shape(32, 48, 4, 2, model_type="helium", head_dim=8, attention_bias=True, rope_parameters=plain),
              dtype=b16),
        Model("seed_oss", gpt2, shape(32, 48, 4, 2, model_type="seed_oss", head_dim=10, rope_theta=900.0), dtype=b16, v4=True),
        Model("olmoe", gpt2, shape(32, 24, 4, 2, model_type="olmoe", pad_token_id=0, num_experts=5, num_experts_per_tok=2,
              rope_parameters=plain), dtype=b16),
        Model("exaone4", gpt2, shape(32, 48, 4, 2, model_type="exaone4", **window, sliding_window_pattern=3, **layers,
              rope_theta=900.0), dtype=b16, v4=True),
        Model("glm", gpt2, shape(32, 48, 4, 2, model_type="glm", head_dim=8, attention_bias=True, pad_token_id=0,
              partial_rotary_factor=0.5, rope_theta=10000.0), dtype=b16, v4=True),
        Model("cohere", gpt2, shape(32, 48, 4, 2, model_type="cohere", layer_norm_eps=1e-4, use_qk_norm=True, pad_token_id=0,
              logit_scale=0.4, tie_word_embeddings=True, rope_theta=900.0), dtype=b16, v4=True),
        *both("cohere2", {"layer_norm_eps": 1e-4, "logit_scale": 0.4, "pad_token_id": 0, **window},
              {"sliding_window_pattern": 4, "num_hidden_layers": 5, "tie_word_embeddings": True},
              {"layer_types": ["full_attention", "sliding_attention"], "attention_bias": True, "tie_word_embeddings": True}),
        Model("gpt2_v4", gpt2, {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128,
              "n_ctx": 128, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-4}, v4=True, dtype=b16),
        Model("gpt2_v5", gpt2, {"model_type": "gpt2", "n_embd": 40, "n_head": 2, "n_layer": 2, "n_positions": 128,
              "n_inner": 56, "activation_function": "gelu"}, dtype=b16),
        Model("gpt_neox_v4", gpt2, shape(32, 48, 4, 4, rotary_pct=0.5, rotary_emb_base=10000) | neox, v4=True, dtype=b16),
        Model("gpt_neox_v5", gpt2, shape(40, 48, 4, 4, use_parallel_residual=False, attention_bias=False,
              rope_parameters=plain | {"partial_rotary_factor": 0.25}) | neox | {"hidden_act": "gelu_new"}, dtype=b16),
        Model("gpt_oss_v4", gpt2, shape(32, 20, 6, 2, head_dim=10, **oss, num_local_experts=5, experts_per_token=2,
              swiglu_limit=7.0, rope_theta=900.0, rope_scaling={"rope_type": "yarn", "factor": 8.0, "beta_fast": 4.0,
              "beta_slow": 1.0, "original_max_position_embeddings": 32, "truncate": False}), dtype=b16, v4=True),
        Model("gpt_oss_v5", gpt2, shape(32, 24, 4, 1, head_dim=8, **oss, num_local_experts=4, attention_bias=False, swiglu_limit=0.4,
              swiglu_alpha=1.3, layer_types=["full_attention", "sliding_attention"], rope_parameters={"rope_type": "yarn",
              "rope_theta": 900.0, "factor": 4.0, "beta_fast": 3.0, "original_max_position_embeddings": 32}), dtype=b16),
        *other_styles(gpt2, spm),
        *more_architectures(gpt2),
    ]


def other_styles(gpt2, spm):
    """Those above with one style of configuration, in the other."""
    v4, v5 = {"rope_theta": 700.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    inside = {"query_pre_attn_scalar": 10, "num_hidden_layers": 3, "sliding_window": 7, "head_dim": 10,
              "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
              "layer_types": ["full_attention", "sliding_attention", "full_attention"],
              "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 2.0},
                                  "sliding_attention": {"rope_type": "default", "rope_theta": 70.0}}}
    partial = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.75}}
    windows = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

    def small(kind, style, tokenizer=gpt2, inside=None, **keys):
        name = {"gemma3_text": "gemma3_inside", "gemma": "gemma_spm"}.get(kind, kind) + "_" + style
        config = shape(24, 24, 2, 1, model_type=kind, **keys)
        return Model(name, tokenizer, config, dtype=torch.bfloat16, v4=style == "v4", inside=inside)

    return [
        small("arcee", "v4", hidden_act="relu2", mlp_bias=True, **v4),
        small("cohere", "v5", layer_norm_eps=1e-4, use_qk_norm=False, pad_token_id=0, tie_word_embeddings=True, **v5),
        small("ernie4_5", "v5", head_dim=14, use_bias=False, **v5),
        small("exaone4", "v5", **windows, **v5),
        small("gemma", "v5", spm, head_dim=10, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, **v5),
        small("glm", "v5", head_dim=16, attention_bias=False, pad_token_id=0, **partial),
        small("helium", "v4", head_dim=12, mlp_bias=True, tie_word_embeddings=True, **v4),
        small("olmo", "v5", pad_token_id=0, attention_bias=True, tie_word_embeddings=True, **v5),
        small("olmo3", "v4", pad_token_id=0, **windows, rope_theta=5e5),
        small("olmoe", "v4", pad_token_id=0, num_experts=4, num_experts_per_tok=3, norm_topk_prob=True, **v4),
        small("phi", "v5", hidden_act="gelu", qk_layernorm=True, tie_word_embeddings=True, rope_parameters={
            "rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}),
        small("seed_oss", "v5", head_dim=14, attention_bias=False, attention_out_bias=True, mlp_bias=True, **v5),
        small("gemma3_text", "v5", inside=("gemma3", "model.", "model.language_model."), **inside),
    ]


def more_architectures(gpt2):
    """Those that came later, and what the ones above leave out."""
    v4, v5 = {"rope_theta": 700.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}

    def pair(name, v4_keys, v5_keys, **keys):
        """One in each style of configuration."""
        kind = keys.pop("model_type", name)
        return [
            Model(name + "_v4", gpt2, keys | {"model_type": kind} | v4_keys, dtype=torch.bfloat16, v4=True),
            Model(name + "_v5", gpt2, keys | {"model_type": kind} | v5_keys, dtype=torch.bfloat16),
        ]

    bits = {"dtype": torch.bfloat16}
    gelu = {"layer_norm_epsilon": 1e-4, "hidden_dropout": 0.0}
    opt = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
           "max_position_embeddings": 128, "pad_token_id": 1, "dropout": 0.0}
    falcon = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **gelu, "model_type": "falcon"}
    bloom = {"hidden_size": 24, "n_layer": 2, **gelu, "model_type": "bloom"}
    sparse = {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_routed_experts": 6}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3}
    half = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}}
    bigcode = {"model_type": "gpt_bigcode", "n_embd": 32, "n_layer": 2, "n_positions": 128, "layer_norm_epsilon": 1e-4}
    alpha = {"rope_theta": 700.0, "rope_scaling": {"type": "dynamic", "alpha": 20.0, "factor": 1.0}}
    granite = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 2.0}
    heads_of_9 = {"n_embd": 36, "n_layer": 2, "n_positions": 128, "n_ctx": 128}
    return [
        *pair("gpt2_odd", {"n_head": 4}, {"n_head": 12, "scale_attn_by_inverse_layer_idx": True}, model_type="gpt2", **heads_of_9),
        *pair("olmo_clip", v4 | {"clip_qkv": 0.6}, v5 | {"clip_qkv": 1.1}, **shape(32, 48, 4, 2, model_type="olmo", pad_token_id=0)),
        *pair("olmoe_clip", v4 | {"clip_qkv": 0.7}, v5 | {"clip_qkv": 1.0}, **shape(
            32, 24, 4, 1, model_type="olmoe", pad_token_id=0, num_experts=4, num_experts_per_tok=2)),
        Model("opt_v4", gpt2, opt | {"do_layer_norm_before": True, "word_embed_proj_dim": 32, "activation_function": "relu",
              "enable_bias": True, "layer_norm_elementwise_affine": True}, **bits, v4=True, vocabulary="</s>"),
        Model("opt_v5", gpt2, opt | {"enable_bias": False, "activation_function": "gelu", "num_attention_heads": 2,
              "tie_word_embeddings": False}, **bits),
        # As the one of 350M parameters.
        Model("opt_350m_v4", gpt2, opt | {"do_layer_norm_before": False, "word_embed_proj_dim": 20}, **bits, v4=True,
              vocabulary="</s>"),
        Model("opt_350m_v5", gpt2, opt | {"do_layer_norm_before": False, "word_embed_proj_dim": 40,
              "layer_norm_elementwise_affine": False}, **bits),
        Model("falcon_v4", gpt2, falcon | {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True,
              "bias": False, "alibi": False}, **bits, v4=True),
        Model("falcon_v5", gpt2, falcon | v5 | {"multi_query": False, "bias": True, "ffn_hidden_size": 40}, **bits),
        Model("falcon_40b_v4", gpt2, falcon | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False,
              "alibi": False, "rope_theta": 10000.0}, **bits, v4=True),
        Model("falcon_11b_v5", gpt2, falcon | v5 | {"new_decoder_architecture": True, "num_kv_heads": 1,
              "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False, "ffn_hidden_size": 48}, **bits),
        # Falcon-RW: positions by linear biases, which the other implementation adds twice, networks after attention.
        Model("falcon_rw_v4", gpt2, falcon | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True,
              "num_attention_heads": 8}, **bits, v4=True, attention="sdpa"),
        Model("falcon_rw_v5", gpt2, falcon | {"alibi": True, "multi_query": True, "bias": True}, **bits, attention="sdpa"),
        Model("bloom_v4", gpt2, bloom | {"n_head": 4, "tie_word_embeddings": False, "seq_length": 256, "attention_softmax_in_fp32": True}, **bits, v4=True),
        # Slopes of a number of heads that is no power of two.
        Model("bloom_v5", gpt2, bloom | {"n_head": 6, "tie_word_embeddings": False}, **bits),
        *pair("gpt_bigcode", {"n_head": 4, "activation_function": "gelu_pytorch_tanh"},
              {"n_head": 2, "multi_query": False, "n_inner": 40, "activation_function": "gelu"}, **bigcode),
        *pair("nemotron", v4 | {"partial_rotary_factor": 0.5, "head_dim": 8}, half | {"head_dim": 12, "mlp_bias": True,
              "attention_bias": True, "num_key_value_heads": 1}, **shape(32, 48, 4, 2, model_type="nemotron",
              hidden_act="relu2", norm_eps=1e-4)),
        *pair("granitemoe", {"rope_theta": 10000.0}, v5 | {"num_key_value_heads": 1}, **granite,
              **shape(32, 16, 4, 2, model_type="granitemoe", num_local_experts=5, num_experts_per_tok=2)),
        *pair("granitemoeshared", {"rope_theta": 10000.0}, v5, **granite, **shape(
            32, 12, 4, 2, model_type="granitemoeshared", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=20)),
        *pair("hunyuan_v1_dense", alpha | {"head_dim": 10}, v5 | {"head_dim": 8, "tie_word_embeddings": True},
              **shape(32, 48, 4, 1, model_type="hunyuan_v1_dense")),
        *pair("glm4_moe", v4 | {"partial_rotary_factor": 0.5, "head_dim": 8, "use_qk_norm": True, "attention_bias": True,
              "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "n_shared_experts": 1},
              half | {"head_dim": 12, "n_group": 3, "topk_group": 2, "norm_topk_prob": False, "n_shared_experts": 2,
              "first_k_dense_replace": 2}, **shape(32, 40, 4, 2, model_type="glm4_moe", num_hidden_layers=3,
              routed_scaling_factor=1.5, num_nextn_predict_layers=0), **sparse),
        Model("ministral3_v5", gpt2, shape(32, 48, 4, 2, model_type="ministral3", head_dim=10, max_position_embeddings=160,
              rope_parameters=yarn | {"rope_theta": 700.0}), **bits),
        Model("mistral3_v5", gpt2, shape(24, 32, 2, 1, model_type="ministral3", head_dim=12, max_position_embeddings=160,
              rope_parameters=yarn | {"rope_theta": 700.0}), **bits, inside=("mistral3", "model.", "model.language_model.")),
        Model("mistral3_v4", gpt2, shape(24, 32, 2, 1, model_type="mistral", head_dim=14, sliding_window=None, **v4), **bits,
              v4=True, inside=("mistral3", "", "language_model.")),
    ]


def write_model(model, folder, tries=None, distinct=8):
    """Writes the directory with the first seed whose greedy tokens are clear, and its expectations."""
    write_tokenizer(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for seed in itertools.count() if tries is None else range(tries):
        write_weights(model, folder, seed)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=model.attention)
        prompts = common.expected_prompts(loaded.eval(), tokenizer, model.texts, margin=2e-3, distinct=distinct, cached=model.cached)
        if prompts:
            break
    else:
        raise RuntimeError(f"no clear continuations within {tries} seeds")
    if model.inside:
        write_inside(*model.inside, folder)
    expected = {
        "prompts": prompts,
        "encode_cases": common.encode_cases(tokenizer),
        "decode_cases": common.decode_cases(tokenizer),
    }
    if model.chat_template:
        render = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(render, add_special_tokens=False)["input_ids"]
        expected["chat"] = {"messages": CONVERSATION, "text": render, "ids": ids}
    common.write_json(folder / "expected.json", expected)


def write_weights(model, folder, seed):
    """Weights and configurations; those of transformers 4 are spelt out, those of 5 are as it saves them."""
    keys = {"vocab_size": len(model.tokenizer), "bos_token_id": model.tokenizer.bos_token_id}
    keys |= {"eos_token_id": model.eos_token_id, "model_type": "llama"} | model.config
    config = AutoConfig.for_model(**json.loads(json.dumps(keys)))
    network = common.random_model(config, seed).to(model.dtype)
    network.generation_config.eos_token_id = model.eos_token_id
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    network.save_pretrained(folder, max_shard_size=model.shard)
    if model.v4:
        dtype = str(model.dtype).removeprefix("torch.")
        first = {"architectures": [type(network).__name__], "model_type": keys["model_type"], "torch_dtype": dtype}
        version = {"transformers_version": "4.44.0"}
        common.write_json(folder / "config.json", first | keys | version, indent=2)
        generation = {"_from_model_config": True, "bos_token_id": keys["bos_token_id"]}
        generation |= {"eos_token_id": model.eos_token_id}
        common.write_json(folder / "generation_config.json", generation | version, indent=2)


def write_inside(model_type, prefix, outer_prefix, folder):
    """Makes a model the text part of a multimodal one, which has other tensors, too."""
    path = folder / "model.safetensors"
    rename = lambda name: outer_prefix + name.removeprefix(prefix) if name.startswith(prefix) else name
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"multi_modal_projector.weight": torch.zeros(2, 2)}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    outer = {key: config.pop(key) for key in ("eos_token_id", "bos_token_id")}
    common.write_json(folder / "config.json", {"model_type": model_type, "text_config": config} | outer, indent=2)


def write_tokenizer(model, folder):
    """transformers 5 keeps the chat template in a file of its own, 4 kept it in tokenizer_config.json."""
    model.tokenizer.chat_template = None if model.v4 else model.chat_template
    model.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    common.write_json(path, json.loads(path.read_text(encoding="utf-8")))
    if model.v4:
        common.write_json(folder / "tokenizer_config.json", tokenizer_config_v4(model), indent=2)
    if model.vocabulary:
        write_vocabulary(folder, model.vocabulary)


def write_vocabulary(folder, token):
    """Makes the tokenizer one of the files that OPT has."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))["model"]
    path.unlink()
    (folder / "tokenizer_config.json").unlink()
    special = {0: "<s>", 1: "<pad>", 2: token}
    common.write_json(folder / "vocab.json", {special.get(i, text): i for text, i in tokenizer["vocab"].items()})
    merges = "\n".join(" ".join(merge) for merge in tokenizer["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8", newline="")
    added = lambda text: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {"errors": "replace", "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    config |= {key: {"__type": "AddedToken"} | added(token) for key in ("bos_token", "eos_token", "unk_token")}
    common.write_json(folder / "tokenizer_config.json", config, indent=2)
    special = {"bos_token": added(token), "eos_token": added(token), "unk_token": added(token), "pad_token": added("<pad>")}
    common.write_json(folder / "special_tokens_map.json", special, indent=2)
    common.write_json(folder / "added_tokens.json", {"<tool>": 319})


def tokenizer_config_v4(model):
    added = {
        str(i): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
            "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
        }
        for i, token in sorted(model.tokenizer.added_tokens_decoder.items())
    }
    config = {"added_tokens_decoder": added, "bos_token": model.tokenizer.bos_token}
    if model.chat_template:
        config["chat_template"] = model.chat_template
    return config | {
        "clean_up_tokenization_spaces": False,
        "eos_token": model.tokenizer.eos_token,
        "model_max_length": 512,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": model.tokenizer.unk_token,
    }


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for model in models():
        if names and model.name not in names:
            continue
        shutil.rmtree(out / model.name, ignore_errors=True)
        (out / model.name).mkdir(parents=True)
        write_model(model, out / model.name)
    if names:
        return
    quantized.write(out)
    gguf_files.write(out / "gguf")
    gguf_tokenizers.write(out)
    templates.write(out / "templates")


if __name__ == "__main__":
    main()
