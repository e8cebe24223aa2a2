"""Writes how likely llama.cpp and transformers find the passages of perplexity/text.txt.

    python perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf > perplexity/expected.json
    python perplexity.py --only-llama MODEL.gguf                    # of any other file, to be looked at

Written with Python 3.11, llama-cpp-python 0.3.36, transformers 5.23.0, torch 2.15.0 (CPU) and gguf 0.19.0.

Each passage is a text of its own, and all its tokens but the first count. `nll` is the sum of the negative natural logarithms
of their probabilities, passage by passage. llama.cpp has its defaults, with keys and values of 16 bits; transformers has the
dequantised weights, in float32 and rounded to bfloat16, and computes with those in bfloat16 (`bfloat16`) and in float32
(`bfloat16 weights`). The figures of llama.cpp and of bfloat16 differ a little between processors.
"""

import argparse
import json
import math
import sys

sys.dont_write_bytecode = True

from pathlib import Path

import llama_cpp
import numpy as np

HERE = Path(__file__).parent


def negative_logprobs(logits, targets):
    """The sum over `targets` of how unlikely `logits`, [targets, vocabulary], make them."""
    logits = np.asarray(logits, dtype=np.float64)
    greatest = logits.max(axis=1)
    norms = greatest + np.log(np.exp(logits - greatest[:, None]).sum(axis=1))
    return float((norms - logits[np.arange(len(targets)), targets]).sum())


def with_llama(path, passages):
    llama = llama_cpp.Llama(
        str(path), n_ctx=1024, n_batch=1024, n_threads=2, n_threads_batch=2, n_gpu_layers=0, verbose=False, logits_all=True
    )
    tokens, nll = [], []
    for passage in passages:
        ids = llama.tokenize(passage.encode(), add_bos=True, special=True)
        llama.reset()
        llama.eval(ids)
        tokens.append(ids)
        nll.append(negative_logprobs(llama.scores[: len(ids) - 1], ids[1:]))
    return tokens, nll


def with_transformers(path, tokens):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    given = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32).eval()

    def measure():
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, :-1].float().numpy() for ids in tokens]
        return [negative_logprobs(rows, ids[1:]) for rows, ids in zip(logits, tokens)]

    nll = {"float32": measure()}
    model = model.to(torch.bfloat16)
    nll["bfloat16"] = measure()
    model = model.to(torch.float32)
    nll["bfloat16 weights"] = measure()
    return nll


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--only-llama", action="store_true")
    args = parser.parse_args()
    passages = (HERE / "perplexity" / "text.txt").read_text(encoding="utf-8").split("\n---\n")
    tokens, llama = with_llama(args.gguf, passages)
    nll = {"llama.cpp": llama}
    if not args.only_llama:
        nll |= with_transformers(args.gguf, tokens)
    counts = [len(ids) for ids in tokens]
    perplexity = {name: round(math.exp(sum(sums) / (sum(counts) - len(counts))), 5) for name, sums in nll.items()}
    rounded = {name: [round(part, 4) for part in sums] for name, sums in nll.items()}
    print(json.dumps({"tokens": counts, "perplexity": perplexity, "nll": rounded}, indent=1))


if __name__ == "__main__":
    main()
