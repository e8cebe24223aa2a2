"""Writes training.json beside the adapters of tests/golden/adapters: what PEFT and torch make of further training.

    python training.py tests/golden

Written with Python 3.11, peft 0.21.2, transformers 5.23.0 and torch 2.15.0 (CPU). The same versions write the same files.

Each adapter of PEFT's goes on for a few steps of AdamW, in f32, on two sequences of random tokens a step. The file has
these, the loss and the length of the gradient of each step, and the numbers of the first module afterwards.
"""

import sys

sys.dont_write_bytecode = True

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import common

STEPS = 4
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    models = Path(sys.argv[1])
    torch.set_num_threads(1)
    for folder in sorted((models / "adapters").iterdir()):
        if (folder / "adapter_model.safetensors").exists():
            common.write_json(folder / "training.json", trained(models, folder))


def trained(models, folder):
    torch.manual_seed(0)
    base = models / json.loads((folder / "expected.json").read_text())["model"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    # Without what transformers adds for experts.
    model.config.output_router_logits = False
    model.eval()
    vocab_size = model.get_input_embeddings().weight.shape[0]
    batches = [[torch.randint(3, vocab_size - 1, (n,)).tolist() for n in (9 + step, 21)] for step in range(STEPS)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for batch in batches:
        targets = sum(len(ids) - 1 for ids in batch)
        loss = sum(summed_loss(model, ids) for ids in batch) / targets
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        adamw.step()
        losses.append(loss.item())
    settings = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "max_grad_norm": MAX_GRAD_NORM}
    return settings | {"batches": batches, "losses": losses, "norms": norms}


def summed_loss(model, ids):
    logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")


if __name__ == "__main__":
    main()
