"""Writes tests/golden/inspection: what transformers computes on the way, for some of the models beside it.

    python inspection.py tests/golden

Written with Python 3.11, transformers 5.23.0 and torch 2.15.0 (CPU). The same versions write the same files.

inspection/<model>.safetensors has for a prompt, in f32, what `output_hidden_states` and `output_attentions` give, and the
keys and queries that the eager attention of the model's own code is called with, if it has one:
  ids            [tokens]
  hidden_states  [layers + 1, tokens, hidden size]
  attentions     [layers, query heads, tokens, tokens]
  queries, keys  [layers, heads, tokens, head size]
"""

import sys

sys.dont_write_bytecode = True

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import common

TEXT = common.LONG[:24]
MODELS = ["gqa_llama3", "gemma2_v4", "qwen3", "phi3_v4", "gpt_neox_v4", "gpt2_v4", "glm4_v4", "cohere2_v4", "olmo",
          "gpt_oss_v5", "bloom_v4", "falcon_v5"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    models = Path(sys.argv[1])
    torch.set_num_threads(1)
    (models / "inspection").mkdir(exist_ok=True)
    for name in MODELS:
        save_file(inspected(models / name), models / "inspection" / f"{name}.safetensors")


@torch.no_grad()
def inspected(path):
    ids = AutoTokenizer.from_pretrained(path)(TEXT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    code = sys.modules[type(model).__module__]
    queries, keys = [], []
    if hasattr(code, "eager_attention_forward"):
        attention = code.eager_attention_forward

        def watched(module, query, key, *args, **kwargs):
            queries.append(query[0])
            keys.append(key[0])
            return attention(module, query, key, *args, **kwargs)

        code.eager_attention_forward = watched
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    tensors = {"ids": torch.tensor(ids, dtype=torch.int32), "hidden_states": torch.stack(out.hidden_states)[:, 0],
               "attentions": torch.stack(out.attentions)[:, 0]}
    if queries:
        tensors |= {"queries": torch.stack(queries), "keys": torch.stack(keys)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
