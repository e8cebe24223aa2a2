"""Writes tiny models with configurations drawn at random, to find what the committed ones do not show.

    python sweep.py OUT_DIR SEED [MODEL_TYPE ...]
    TOKENFLOW_GOLDEN=OUT_DIR cargo test --release --test suite golden::directories

One of each architecture in each style of configuration; nothing of it is committed. Versions as in generate.py.
"""

import sys

sys.dont_write_bytecode = True

import random
from pathlib import Path

import torch

import common
import generate
from generate import Model, shape


class Draw(random.Random):
    """Random values of the keys that architectures share."""

    def keys(self, **choices):
        """One of the values of each key; `...` leaves the key out."""
        drawn = {key: self.choice(values) for key, values in choices.items()}
        return {key: value for key, value in drawn.items() if value is not ...}

    def llama(self, heads=(1, 2, 4, 6), head_dims=(..., 6, 10, 16), **keys):
        """Sizes of attention and networks."""
        count = self.choice(heads)
        groups = self.choice([n for n in range(1, count + 1) if count % n == 0])
        dim = self.choice([8, 12, 16])
        drawn = self.keys(head_dim=head_dims, tie_word_embeddings=[True, False], num_hidden_layers=[1, 2, 3, 4])
        return shape(count * dim, self.choice([24, 40, 48]), count, count // groups) | drawn | keys

    def rope(self, v4, kinds, theta=True, **more):
        """The keys of rope in one of the styles."""
        kind = self.choice(kinds)
        keys = {"default": {}, "linear": {"factor": 2.5}, "dynamic": {"factor": 3.0},
                "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 32},
                "yarn": {"factor": 4.0, "original_max_position_embeddings": 32}
                | self.keys(beta_fast=[..., 8], beta_slow=[..., 2], mscale=[..., 0.8], truncate=[..., False],
                            attention_factor=[..., 1.2])}[kind]
        base = self.choice([100.0, 900.0, 10000.0, 1e6])
        more = {key: value for key, value in more.items() if value is not ...}
        if not v4:
            return {"rope_parameters": {"rope_type": kind, "rope_theta": base} | keys | more}
        name = self.choice(["type", "rope_type"])
        scaling = {"rope_scaling": None if kind == "default" else {name: kind} | keys}
        return ({"rope_theta": base} if theta else {}) | scaling | more

    def windows(self, layers, pattern=(..., 3)):
        window = self.choice([1, 3, 7, 16])
        if self.random() < 0.5:
            kinds = [self.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]
            return {"sliding_window": window, "layer_types": kinds}
        return {"sliding_window": window} | self.keys(sliding_window_pattern=pattern)


FULL = ["default", "linear", "dynamic", "llama3", "yarn"]
ACTIVATIONS = ["silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new"]


def keys_of(kind, draw, v4):
    """The keys of a configuration of an architecture."""
    llama, rope, keys, windows = draw.llama, lambda **more: draw.rope(v4, FULL, **more), draw.keys, draw.windows
    flag = [True, False, ...]
    acts = {"hidden_act": draw.choice(ACTIVATIONS)}
    partial = draw.choice([0.25, 0.5, 0.75, 1.0])
    rotary = {"partial_rotary_factor": partial}
    experts = keys(num_experts=[3, 5, 8], num_experts_per_tok=[1, 2, 3], moe_intermediate_size=[12, 24],
                   norm_topk_prob=flag, decoder_sparse_step=[1, 2], mlp_only_layers=[[], [0], [1]])
    pad = {"pad_token_id": 0}
    if kind in ("llama", "arcee", "seed_oss", "ernie4_5", "helium"):
        out = llama() | rope() | keys(attention_bias=flag, mlp_bias=flag)
        if kind == "arcee":
            out["hidden_act"] = "relu2"
        if kind == "ernie4_5":
            out |= keys(use_bias=flag)
        if kind == "helium":
            out["head_dim"] = out["hidden_size"] // out["num_attention_heads"]
        if kind == "seed_oss":
            out |= keys(attention_out_bias=flag)
        if kind in ("llama",):
            out |= acts
        return out
    if kind == "mistral":
        return llama() | rope() | keys(sliding_window=[None, 3, 9])
    if kind == "mixtral":
        return llama() | rope() | keys(num_local_experts=[2, 5], num_experts_per_tok=[1, 2], sliding_window=[None, 3])
    if kind in ("qwen2", "qwen3"):
        out = llama(head_dims=(...,) if kind == "qwen2" else (..., 10, 16)) | rope()
        out |= keys(use_sliding_window=[True, False], sliding_window=[5, 11], max_window_layers=[0, 1, 2])
        if kind == "qwen3":
            out |= keys(attention_bias=flag)
        if out["use_sliding_window"] and draw.random() < 0.5:
            out["layer_types"] = [draw.choice(["sliding_attention", "full_attention"]) for _ in range(out["num_hidden_layers"])]
        return out
    if kind in ("qwen2_moe", "qwen3_moe"):
        out = llama(head_dims=(...,) if kind == "qwen2_moe" else (..., 10, 16)) | rope() | experts
        out |= keys(use_sliding_window=[True, False], sliding_window=[5], max_window_layers=[0, 1, 2])
        if kind == "qwen2_moe":
            out |= {"shared_expert_intermediate_size": draw.choice([12, 28])} | keys(qkv_bias=flag)
        else:
            out |= keys(attention_bias=flag)
        return out
    if kind == "gpt_oss":
        out = llama(head_dims=(8, 10, 16), **keys(num_local_experts=[2, 5], num_experts_per_tok=[1, 2])) | rope()
        out |= keys(attention_bias=flag, swiglu_limit=[..., 0.5], swiglu_alpha=[..., 1.2])
        return out | windows(out["num_hidden_layers"], pattern=(...,))
    if kind == "gemma":
        return llama(tie_word_embeddings=True) | rope() | keys(hidden_act=["gelu_pytorch_tanh", "gelu"])
    if kind == "gemma2":
        out = llama(tie_word_embeddings=True) | rope()
        out |= keys(query_pre_attn_scalar=[7, 16], attn_logit_softcapping=[None, 2.0, 50.0], final_logit_softcapping=[None, 5.0, 30.0],
                    hidden_activation=["gelu_pytorch_tanh"])
        return out | windows(out["num_hidden_layers"], pattern=(...,))
    if kind == "gemma3_text":
        out = llama(tie_word_embeddings=True) | keys(query_pre_attn_scalar=[7, 16], final_logit_softcapping=[None, ..., 5.0])
        out |= windows(out["num_hidden_layers"], pattern=(..., 2, 3))
        if v4:
            scaling = draw.choice([None, {"rope_type": "linear", "factor": 8.0}])
            return out | {"rope_theta": 5000.0, "rope_local_base_freq": 200.0, "rope_scaling": scaling}
        one, other = (draw.rope(False, ["default", "linear"])["rope_parameters"] for _ in range(2))
        return out | {"rope_parameters": {"full_attention": one, "sliding_attention": other}}
    if kind == "phi":
        out = llama(head_dims=(...,)) | draw.rope(v4, FULL, partial_rotary_factor=partial)
        return out | keys(layer_norm_eps=[1e-5, 1e-3], qk_layernorm=flag, hidden_act=["gelu_new", "gelu"])
    if kind == "phi3":
        out = llama() | pad | keys(sliding_window=[None, 7], **{})
        out["head_dim"] = 16
        dims = int(partial * out["head_dim"])
        n = dims // 2
        if draw.random() < 0.5:
            long = {"short_factor": [1.0 + 0.1 * i for i in range(n)], "long_factor": [1.5 + 0.5 * i for i in range(n)]}
            out |= {"max_position_embeddings": 160, "original_max_position_embeddings": 20, **rotary}
            if v4:
                return out | {"rope_theta": 900.0, "rope_scaling": {"type": "longrope"} | long}
            return out | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 900.0, "original_max_position_embeddings": 20} | rotary | long}
        return out | draw.rope(v4, ["default"], **(rotary if v4 or draw.random() < 0.7 else {}))
    if kind in ("olmo", "olmo2"):
        return llama(head_dims=(...,)) | rope() | pad | keys(attention_bias=flag)
    if kind == "olmo3":
        out = llama(head_dims=(...,)) | pad
        out |= windows(out["num_hidden_layers"], pattern=(...,))
        if v4:
            # Of other bases and scalings, transformers 5 makes less than transformers 4 did.
            return out | {"rope_theta": 5e5, "rope_scaling": None}
        one, other = (draw.rope(False, ["default", "linear"])["rope_parameters"] for _ in range(2))
        return out | {"rope_parameters": {"full_attention": one, "sliding_attention": other}}
    if kind == "olmoe":
        return llama(head_dims=(...,)) | rope() | pad | keys(num_experts=[3, 6], num_experts_per_tok=[1, 2], norm_topk_prob=flag,
                                                             attention_bias=flag)
    if kind == "granite":
        return llama(head_dims=(...,)) | rope() | keys(embedding_multiplier=[..., 3.0], attention_multiplier=[..., 0.2], residual_multiplier=[..., 0.4],
                              logits_scaling=[..., 0.7, 4], attention_bias=flag, mlp_bias=flag)
    if kind == "smollm3":
        out = llama(head_dims=(...,)) | rope() | pad | keys(attention_bias=flag, mlp_bias=flag)
        n = out["num_hidden_layers"]
        out |= draw.choice([{}, {"no_rope_layers": [draw.choice([0, 1]) for _ in range(n)]}, {"no_rope_layer_interval": 2}])
        return out | draw.choice([{"use_sliding_window": False}, {"use_sliding_window": True} | windows(n, pattern=(...,))])
    if kind == "starcoder2":
        return llama(head_dims=(...,)) | rope() | keys(norm_epsilon=[1e-5, 1e-3], use_bias=flag, sliding_window=[None, 5],
                                                       hidden_act=["gelu_pytorch_tanh", "gelu"])
    if kind == "stablelm":
        return llama(head_dims=(...,)) | draw.rope(v4, FULL, partial_rotary_factor=partial) | keys(
            layer_norm_eps=[1e-5, 1e-3], use_qkv_bias=flag, qk_layernorm=flag, use_parallel_residual=flag)
    if kind in ("glm", "glm4"):
        return llama(head_dims=(8, 10, 16)) | draw.rope(v4, ["default"], partial_rotary_factor=draw.choice([0.5, 1.0])) | pad | keys(attention_bias=flag)
    if kind == "cohere":
        return llama(head_dims=(...,), tie_word_embeddings=True) | rope() | pad | keys(
            layer_norm_eps=[1e-5, 1e-3], use_qk_norm=flag, logit_scale=[0.4, 1.5, ...], attention_bias=flag)
    if kind == "cohere2":
        out = llama(head_dims=(..., 10), tie_word_embeddings=True) | rope() | pad | keys(
            layer_norm_eps=[1e-5, 1e-3], logit_scale=[0.4, ...], attention_bias=flag)
        return out | windows(out["num_hidden_layers"], pattern=(..., 2, 3))
    if kind == "exaone4":
        out = llama() | rope()
        return out | windows(out["num_hidden_layers"], pattern=(2, 3))
    if kind == "gpt2":
        heads = draw.choice([1, 2, 4])
        return {"model_type": "gpt2", "n_embd": heads * draw.choice([8, 12]), "n_head": heads, "n_layer": draw.choice([1, 3]),
                "n_positions": 160} | keys(n_inner=[..., None, 40], activation_function=["gelu_new", "gelu", "relu", "silu"],
                layer_norm_epsilon=[..., 1e-3], scale_attn_weights=flag, scale_attn_by_inverse_layer_idx=flag,
                reorder_and_upcast_attn=flag, tie_word_embeddings=[True, ..., False])
    if kind == "gpt_neox":
        out = llama(head_dims=(...,)) | {"num_key_value_heads": None} | keys(
            layer_norm_eps=[1e-5, 1e-3], use_parallel_residual=flag, attention_bias=flag,
            hidden_act=["gelu", "gelu_new", "gelu_fast", "relu"])
        if v4:
            return out | {"rotary_pct": partial, "rotary_emb_base": 5000} | draw.choice([{}, {"rope_scaling": {"type": "linear", "factor": 2.0}}])
        return out | draw.rope(v4, FULL, partial_rotary_factor=partial)
    return later_keys_of(kind, draw, v4)


def later_keys_of(kind, draw, v4):
    """Those of architectures that came later."""
    rope, keys, flag = lambda **more: draw.rope(v4, FULL, **more), draw.keys, [True, False, ...]
    heads = draw.choice([1, 2, 4, 6])
    plain = {"hidden_size": heads * draw.choice([8, 12]), "num_attention_heads": heads, "num_hidden_layers": draw.choice([1, 3])}
    if kind == "opt":
        return plain | {"max_position_embeddings": 160, "pad_token_id": 1} | keys(
            ffn_dim=[24, 40], do_layer_norm_before=flag, word_embed_proj_dim=[..., 20], enable_bias=flag,
            layer_norm_elementwise_affine=flag, tie_word_embeddings=flag, activation_function=["relu", "gelu", "gelu_new"])
    if kind == "falcon":
        out = plain | draw.choice([{"alibi": True}, rope()]) | keys(
            bias=flag, tie_word_embeddings=flag, ffn_hidden_size=[..., 24], layer_norm_epsilon=[..., 1e-3])
        if draw.random() < 0.5:
            groups = [n for n in range(1, heads + 1) if heads % n == 0]
            return out | {"new_decoder_architecture": True} | keys(num_kv_heads=groups, num_ln_in_parallel_attn=[..., 1, 2])
        return out | keys(multi_query=flag, parallel_attn=flag)
    if kind == "bloom":
        sizes = {"hidden_size": plain["hidden_size"], "n_head": heads, "n_layer": plain["num_hidden_layers"]}
        return sizes | keys(layer_norm_epsilon=[..., 1e-3], tie_word_embeddings=flag)
    if kind == "gpt_bigcode":
        sizes = {"n_embd": plain["hidden_size"], "n_head": heads, "n_layer": plain["num_hidden_layers"], "n_positions": 160}
        return sizes | keys(multi_query=flag, n_inner=[..., 40], activation_function=["gelu_pytorch_tanh", "gelu", ...],
                            scale_attn_weights=flag, tie_word_embeddings=flag)
    if kind == "nemotron":
        partial = draw.choice([0.25, 0.5, 1.0])
        return draw.llama(head_dims=(..., 8, 16)) | {"hidden_act": "relu2"} | draw.rope(
            v4, ["default"], partial_rotary_factor=partial) | keys(norm_eps=[1e-5, 1e-3], attention_bias=flag, mlp_bias=flag)
    if kind in ("granitemoe", "granitemoeshared"):
        out = draw.llama(head_dims=(...,)) | rope() | keys(
            num_local_experts=[3, 5], num_experts_per_tok=[1, 2, 3], embedding_multiplier=[..., 3.0], logits_scaling=[..., 4],
            attention_multiplier=[..., 0.2], residual_multiplier=[..., 0.4], attention_bias=flag)
        return out | ({"shared_intermediate_size": draw.choice([12, 20])} if kind == "granitemoeshared" else {})
    if kind == "hunyuan_v1_dense":
        dims = keys(head_dim=[8, 10, 16])
        return draw.llama() | dims | rope() | keys(attention_bias=flag)
    if kind == "glm4_moe":
        groups = draw.choice([{"n_group": 1, "topk_group": 1}, {"n_group": 3, "topk_group": 2}, {"n_group": 2, "topk_group": 1}])
        partial = draw.choice([0.5, 1.0])
        return draw.llama(head_dims=(8, 10, 16)) | draw.rope(v4, ["default"], partial_rotary_factor=partial) | groups | keys(
            attention_bias=flag, use_qk_norm=flag, first_k_dense_replace=[0, 1, 2], norm_topk_prob=flag, n_routed_experts=[6, 12],
            num_experts_per_tok=[1, 3], moe_intermediate_size=[12], n_shared_experts=[1, 2], routed_scaling_factor=[..., 2.5])
    if kind == "ministral3":
        yarn = {"rope_type": "yarn", "rope_theta": draw.choice([900.0, 1e6]), "factor": draw.choice([2.0, 4.0]),
                "original_max_position_embeddings": draw.choice([7, 40]), "mscale": 1.0, "mscale_all_dim": 1.0}
        return draw.llama() | {"rope_parameters": yarn | keys(llama_4_scaling_beta=[0.1, 0.4])} | keys(sliding_window=[..., 9])
    raise KeyError(kind)


KINDS = ("llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 olmo olmo2 olmo3 olmoe granite smollm3 "
         "starcoder2 stablelm glm glm4 cohere cohere2 exaone4 gpt2 gpt_neox gpt_oss arcee ernie4_5 helium seed_oss "
         "opt falcon bloom gpt_bigcode nemotron granitemoe granitemoeshared hunyuan_v1_dense glm4_moe ministral3").split()


def main():
    out, seed, *kinds = sys.argv[1:]
    torch.set_num_threads(1)
    tokenizers = {"gpt2": common.gpt2_tokenizer(), "llama3": common.llama3_tokenizer(), "spm": common.spm_tokenizer()}
    for kind in kinds or KINDS:
        for v4 in (True, False):
            draw = Draw(f"{seed} {kind} {v4}")
            tokenizer = draw.choice(list(tokenizers))
            name = f"{kind}_v{4 if v4 else 5}_{tokenizer}_{seed}"
            keys = keys_of(kind, draw, v4) | {"model_type": kind}
            dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
            model = Model(name, tokenizers[tokenizer], keys, dtype=dtype, v4=v4, texts=common.PROMPTS[:2],
                          attention="sdpa" if keys.get("alibi") else "eager")
            folder = Path(out) / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                generate.write_model(model, folder, tries=20, distinct=1)
            except Exception as error:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
                print(f"{name}: {error!r} {keys}", flush=True)


if __name__ == "__main__":
    main()
