"""Quantised Hugging Face directories, and what their references make of them.

MLX's are written and computed by mlx-lm. GPTQ's, AWQ's, FP8's and MXFP4's are packed here as their formats say, and
computed by transformers from the weights that the codes stand for.

Written with mlx 0.32.4 and mlx-lm 0.32.2, besides what generate.py names.
"""

import json
import shutil

import mlx.core as mx
import torch
from mlx_lm import convert
from mlx_lm.utils import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import common

BITS = {"q_proj": (2, 32), "k_proj": (3, 64), "v_proj": (6, 128), "o_proj": (8, 64), "gate_proj": (3, 32), "down_proj": (8, 32)}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
# What the codes of MXFP4 stand for.
FLOATS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def shape(**more):
    return {
        "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "eos_token_id": 2, "model_type": "llama",
    } | more


def write(folder):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16}
    mlx(folder / "mlx", shape(), q_bits=4, q_group_size=64)
    mlx(folder / "mlx_mixed", shape(model_type="qwen3", head_dim=32), q_bits=4, q_group_size=32, quant_predicate=mixed)
    mlx(folder / "mlx_moe", shape(model_type="qwen3_moe", hidden_size=64, **experts), q_bits=4, q_group_size=32)
    mlx(folder / "mlx_mxfp4", shape(), q_mode="mxfp4")
    mxfp4(folder / "mxfp4_moe", gpt_oss(32, 64, truncate=False))
    # mlx-lm always does.
    mlx(folder / "mlx_mxfp4_moe", gpt_oss(64, 32, truncate=True), q_bits=4, q_group_size=32)
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 1, "n_positions": 128, "n_ctx": 128, "eos_token_id": 2}
    mlx(folder / "mlx_gpt2", gpt2, prefix="transformer.", q_bits=4, q_group_size=32)
    neox = {"hidden_size": 64, "intermediate_size": 256, "hidden_act": "gelu_new", "num_key_value_heads": None}
    neox |= {"rotary_pct": 0.25, "rotary_emb_base": 500, "rope_parameters": None, "tie_word_embeddings": False}
    mlx(folder / "mlx_gpt_neox", shape(model_type="gpt_neox", layer_norm_eps=1e-4, **neox), q_bits=4, q_group_size=32)
    packed(folder / "gptq", gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False})
    acts = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "checkpoint_format": "gptq_v2"}
    packed(folder / "gptq_order", gptq, acts)
    packed(folder / "gptq_8", gptq, {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True})
    packed(folder / "awq", awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"})
    packed(folder / "fp8", fp8, {"quant_method": "fp8", "weight_block_size": [64, 64], "activation_scheme": "dynamic"})


def mixed(path, module):
    """Each module its own bits and groups; norms have none."""
    if not hasattr(module, "to_quantized"):
        return False
    bits, group = next((value for key, value in BITS.items() if key in path), (4, 32))
    return {"bits": bits, "group_size": group}


def gpt_oss(hidden, inner, **rope):
    rope = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32} | rope
    return shape(model_type="gpt_oss", hidden_size=hidden, intermediate_size=inner, head_dim=16, num_hidden_layers=2, num_local_experts=4,
                 num_experts_per_tok=2, sliding_window=11, tie_word_embeddings=False, rope_parameters=rope)


def source(folder, config, seed, dtype):
    """A directory of plain weights."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = common.gpt2_tokenizer()
    config = AutoConfig.for_model(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, **config)
    common.random_model(config, seed, std=0.15).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def mlx(folder, config, prefix="", **how):
    """`prefix` is what names begin with, and not in the checkpoints that mlx-lm reads."""
    plain = folder.with_name(folder.name + "_plain")
    for seed in range(1000):
        tokenizer = source(plain, config, seed, torch.float16)
        # mlx-lm looks for keys as transformers 4 wrote them.
        path = plain / "config.json"
        keys = json.loads(path.read_text()) | {"rope_theta": 500.0, "num_experts": config.get("num_experts", 0)}
        keys |= {key: config[key] for key in ("rotary_pct", "rotary_emb_base") if key in config}
        if config["model_type"] == "gpt_oss":
            keys["rope_scaling"] = keys.pop("rope_parameters")
        path.write_text(json.dumps(keys, indent=2) + "\n")
        if config["model_type"] == "gpt_oss":
            pack_experts(plain)
        if prefix:
            path = plain / "model.safetensors"
            tensors = {name.removeprefix(prefix): tensor for name, tensor in load_file(path).items()}
            save_file(tensors, path, metadata={"format": "pt"})
        shutil.rmtree(folder, ignore_errors=True)
        convert(str(plain), str(folder), quantize=True, **how)
        model, _ = load_model(folder)
        # All that is computed, in 32 bits; the codes are what they are.
        model.set_dtype(mx.float32)
        if finish(folder, tokenizer, lambda ids: mlx_logits(model, ids)):
            break
    shutil.rmtree(plain)
    (folder / "README.md").unlink(missing_ok=True)


def mlx_logits(model, ids):
    return torch.tensor(model(mx.array([ids]))[0, -1].astype(mx.float32).tolist())


def packed(folder, pack, quantization):
    for seed in range(1000):
        tokenizer = source(folder, shape(), seed, torch.float16)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(seed)
        tensors = load_file(folder / "model.safetensors")
        for name, module in model.named_modules():
            if name.rsplit(".", 1)[-1] in LAYERS:
                weight = tensors.pop(f"{name}.weight").float()
                parameters, module.weight.data = pack(weight, quantization, generator)
                tensors |= {f"{name}.{key}": value.contiguous() for key, value in parameters.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}, indent=2) + "\n")
        if finish(folder, tokenizer, lambda ids: common.last_logits(model, ids)):
            break


def mxfp4(folder, config):
    for seed in range(1000):
        tokenizer = source(folder, config, seed, torch.float16)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        model.load_state_dict(pack_experts(folder), strict=False)
        if finish(folder, tokenizer, lambda ids: common.last_logits(model, ids)):
            break


def pack_experts(folder):
    """Stores the experts of a directory as OpenAI does; gives what their codes stand for."""
    tensors, back = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        weight = tensors.pop(name).float().transpose(1, 2)
        groups = weight.reshape(*weight.shape[:2], -1, 32)
        exponent = groups.abs().amax(3, keepdim=True).log2().floor() - 2
        scaled = groups / exponent.exp2()
        code = (scaled.abs()[..., None] - FLOATS).abs().argmin(-1)
        values = FLOATS[code] * scaled.sign() * exponent.exp2()
        code += 8 * (scaled < 0)
        tensors[f"{name}_blocks"] = (code[..., ::2] | code[..., 1::2] << 4).byte()
        tensors[f"{name}_scales"] = (exponent[..., 0] + 127).byte()
        back[name] = values.reshape(weight.shape).transpose(1, 2).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    quantization = {"modules_to_not_convert": kept, "quant_method": "mxfp4"}
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}, indent=2) + "\n")
    return back


def finish(folder, tokenizer, logits):
    """Writes the expectations if they are clear."""
    prompts = []
    for text in common.PROMPTS:
        prompt = common.expected_prompt_of(logits, tokenizer, text, margin=5e-3)
        if prompt is None or len(set(prompt["greedy"])) < 6:
            return False
        prompts.append(prompt)
    common.write_json(folder / "expected.json", {"prompts": prompts})
    path = folder / "tokenizer.json"
    common.write_json(path, json.loads(path.read_text(encoding="utf-8")))
    return True


def codes(weight, bits, group):
    """Codes, scales and zero points of each group of columns."""
    grouped = weight.reshape(weight.shape[0], -1, group)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    zero = (-low / scale).round().clamp(1, 2**bits - 1)
    code = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    back = ((code - zero[..., None]) * scale[..., None]).reshape(weight.shape)
    return code.reshape(weight.shape).long(), scale, zero.long(), back


def words(values, bits, order=None):
    """Packs neighbours of the last dimension."""
    per_word = 32 // bits
    split = values.reshape(*values.shape[:-1], -1, per_word)
    shifts = torch.arange(per_word) * bits
    packed = (split[..., order or list(range(per_word))] << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def gptq(weight, config, generator):
    bits, columns = config["bits"], weight.shape[1]
    group = columns if config["group_size"] < 0 else config["group_size"]
    order = torch.randperm(columns, generator=generator) if config.get("desc_act") else torch.arange(columns)
    code, scale, zero, back = codes(weight[:, order], bits, group)
    groups = torch.empty(columns, dtype=torch.int32)
    groups[order] = (torch.arange(columns) // group).int()
    inverse = torch.argsort(order)
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    parameters = {
        "qweight": words(code[:, inverse], bits).t(),
        "qzeros": words(zero.t() - less, bits),
        "scales": scale.t().half(),
        "g_idx": groups,
    }
    return parameters, back[:, inverse]


def awq(weight, config, generator):
    code, scale, zero, back = codes(weight, 4, config["group_size"])
    parameters = {
        "qweight": words(code.t(), 4, AWQ_ORDER),
        "qzeros": words(zero.t(), 4, AWQ_ORDER),
        "scales": scale.t().half(),
    }
    return parameters, back


def fp8(weight, config, generator):
    high, wide = config["weight_block_size"]
    blocks = weight.reshape(weight.shape[0] // high, high, weight.shape[1] // wide, wide)
    scale = blocks.abs().amax((1, 3)) / 448
    code = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    back = (code.float() * scale[:, None, :, None]).reshape(weight.shape)
    return {"weight": code.reshape(weight.shape), "weight_scale_inv": scale}, back
