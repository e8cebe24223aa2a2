"""The peer of the training benchmark: trains a LoRA adapter of PEFT's.

train_with_peft.py MODEL ADAPTER EXAMPLES.json DTYPE LEARNING_RATE STEPS: goes on from ADAPTER with two examples a step, each of them
all tokens, and prints the losses, the tokens per second of all steps but the first, and the most memory there was."""

import json
import resource
import sys
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

model_dir, adapter_dir, examples, dtype, rate, steps = sys.argv[1:]
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
model = PeftModel.from_pretrained(model, adapter_dir, is_trainable=True)
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=float(rate), weight_decay=0.0)
examples = json.load(open(examples))

losses, seconds, tokens = [], 0.0, 0
for step in range(int(steps)):
    batch = torch.tensor(examples[2 * step : 2 * step + 2])
    begun = time.perf_counter()
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step > 0:
        seconds += time.perf_counter() - begun
        tokens += batch.numel()
    losses.append(loss.item())
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"losses": losses, "tokens_per_second": tokens / max(seconds, 1e-9), "memory": memory}))
