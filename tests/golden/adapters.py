"""Writes tests/golden/adapters: tiny adapters over the models beside it, and what PEFT and MLX-LM make of them.

    python adapters.py tests/golden

Written with Python 3.11, peft 0.21.2, transformers 5.23.0, torch 2.15.0 (CPU), mlx 0.32.4 and mlx-lm 0.32.2. Everything is
seeded: the same versions write the same files.

adapters/<name>/      an adapter directory and expected.json: the model, and prompts as in the models' own, computed in f32
"""

import sys

sys.dont_write_bytecode = True

import itertools
import json
import shutil
from pathlib import Path

import mlx.core as mx
import torch
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import common

TEXTS = [common.SHORT, common.LONG]

PEFT = [
    ("q_v", "gqa_llama3", dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"])),
    ("all_linear", "qwen3", dict(r=2, lora_alpha=5, target_modules="all-linear")),
    ("patterns", "gemma2_v4", dict(r=3, lora_alpha=4, target_modules=["q_proj", "o_proj", "up_proj"],
     rank_pattern={"o_proj": 2, r"layers\.1\.mlp\.up_proj": 5}, alpha_pattern={"layers.0.self_attn.q_proj": 9})),
    ("fused", "phi3_v4", dict(r=3, lora_alpha=6, target_modules="all-linear")),
    ("fused_dora", "phi3_v4", dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "down_proj"], use_dora=True)),
    ("by_head_rslora", "gpt_neox_v4", dict(r=4, lora_alpha=3, use_rslora=True, target_modules=["query_key_value", "dense"])),
    ("conv1d", "gpt2_v4", dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    ("conv1d_dora", "gpt2_v4", dict(r=2, lora_alpha=4, target_modules=["c_attn", "c_proj"], use_dora=True,
     fan_in_fan_out=True)),
    ("dora_bias", "bias_linear", dict(r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], use_dora=True)),
    ("tied_head", "helium_v4", dict(r=3, lora_alpha=6, target_modules=["lm_head", "k_proj"])),
    ("turned", "olmo", dict(r=2, lora_alpha=4, target_modules=r"model\.layers\.1\.self_attn\.(q|k|v)_proj")),
    ("inside", "gemma3_inside", dict(r=2, lora_alpha=4, target_modules=r".*language_model.*\.(q_proj|down_proj)")),
    ("experts", "olmoe", dict(r=3, lora_alpha=4, target_modules=["q_proj", "k_proj", "o_proj"])),
    ("shared_expert", "qwen2_moe_v4", dict(r=2, lora_alpha=3, target_modules=["v_proj", "shared_expert.up_proj",
     "shared_expert_gate"])),
]

MLX = [
    ("mlx", "mha_tied", "lora", ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]),
    ("mlx_dora", "mha_tied", "dora", ["self_attn.k_proj", "mlp.gate_proj"]),
]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    models = Path(sys.argv[1])
    torch.set_num_threads(1)
    shutil.rmtree(models / "adapters", ignore_errors=True)
    for name, model, config in PEFT:
        first_clear(models, name, model, lambda folder, seed: peft_logits(models / model, folder, config, seed))
    for name, model, kind, keys in MLX:
        first_clear(models, name, model, lambda folder, seed: mlx_logits(models / model, folder, kind, keys, seed))


def first_clear(models, name, model, write):
    """Writes the adapter with the first seed whose greedy tokens are clear, and its expectations."""
    folder = models / "adapters" / name
    tokenizer = AutoTokenizer.from_pretrained(models / model)
    for seed in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        logits = write(folder, seed)
        prompts = [common.expected_prompt_of(logits, tokenizer, text, margin=2e-3) for text in TEXTS]
        if all(prompts):
            break
    common.write_json(folder / "expected.json", {"model": model, "prompts": prompts})


def base_model(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def peft_logits(base, folder, config, seed):
    """Writes a random adapter, and gives what PEFT computes with it once it is loaded again."""
    torch.manual_seed(seed)
    model = get_peft_model(base_model(base), LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.3 * torch.randn(parameter.shape)
        elif "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    # In 16 bits where the model is.
    path = folder / "adapter_model.safetensors"
    dtype = next(iter(load_file(base / "model.safetensors").values())).dtype
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    keys = json.loads(path.read_text()) | {"base_model_name_or_path": base.name}
    if isinstance(keys["target_modules"], list):
        keys["target_modules"].sort()
    common.write_json(path, keys, indent=2)
    loaded = PeftModel.from_pretrained(base_model(base), folder).eval()
    return lambda ids: common.last_logits(loaded, ids)


def mlx_logits(base, folder, kind, keys, seed):
    """As `peft_logits`, by MLX-LM."""
    mx.random.seed(seed)
    model, _ = load_model(base)
    model.set_dtype(mx.float32)
    parameters = {"rank": 3, "scale": 1.5, "dropout": 0.0, "keys": keys}
    model.freeze()
    linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
    model.update(tree_unflatten([
        (name, value * (1 + 0.3 * mx.random.normal(value.shape)) if name.endswith(".m") else 0.3 * mx.random.normal(value.shape))
        for name, value in tree_flatten(model.trainable_parameters())
        if name.endswith((".lora_a", ".lora_b", ".m"))
    ]))
    model.eval()
    stored = {name: value for name, value in tree_flatten(model.parameters()) if name.endswith((".lora_a", ".lora_b", ".m"))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), stored)
    config = {"fine_tune_type": kind, "model": base.name, "num_layers": 2, "lora_parameters": parameters}
    common.write_json(folder / "adapter_config.json", config, indent=4)
    return lambda ids: torch.tensor(model(mx.array([ids]))[0, -1].tolist())


if __name__ == "__main__":
    main()
