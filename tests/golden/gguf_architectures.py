"""Writes the golden directories of all architectures as GGUF files, by llama.cpp's own converter.

    python gguf_architectures.py LLAMA_CPP OUT_DIR

LLAMA_CPP is a source tree of llama.cpp; written with the one in the source distribution of llama-cpp-python
0.3.36. What is expected of a file is in the directory that it was made of: weights stay in 16 bits as they are,
what has one dimension and routers become 32 bits. `*-00001-of-*` is one model in several files.
"""

import multiprocessing
import shutil
import sys

sys.dont_write_bytecode = True

from pathlib import Path

HERE = Path(__file__).parent

# Converters that look for a SentencePiece model get these byte-level vocabularies.
BYTE_LEVEL = ["_set_vocab_sentencepiece", "_set_vocab_llama_hf", "set_vocab"]

# Directories, with keys that the converter looks for and newer configurations have under other names.
FILES = {
    "mixtral_v4": {}, "qwen2_moe_v4": {}, "qwen3_moe_v4": {}, "gemma2_v4": {},
    "gemma3_inside": {}, "phi": {}, "phi3_v4": {}, "phi3_long_v5": {}, "olmo": {}, "olmo2_v4": {}, "olmo3": {},
    "granite_v4": {}, "starcoder2_v4": {}, "stablelm_v4": {}, "glm": {"seq_length": 512}, "glm4_v4": {}, "cohere": {},
    "cohere2_v4": {"rotary_pct": 1.0}, "gpt2_v4": {"n_ctx": 128}, "gpt_neox_v4": {"rotary_pct": 0.5}, "gpt_oss_v4": {},
    "arcee": {}, "ernie4_5": {}, "seed_oss": {}, "olmoe": {}, "exaone4": {},
    "olmo_clip_v4": {}, "falcon_v4": {"num_kv_heads": 1}, "falcon_40b_v4": {}, "bloom_v4": {}, "gpt_bigcode_v4": {},
    "nemotron_v4": {}, "granitemoe_v4": {}, "granitemoeshared_v4": {}, "hunyuan_v1_dense_v5": {}, "glm4_moe_v4": {},
    "ministral3_v5": {},
}
SPLIT = ["granite_v5"]


def convert(source, target, llama_cpp, keys, *options):
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import conversion
    import convert_hf_to_gguf

    base = conversion.TextModel
    base.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    conversion.load_all_models()
    load = conversion.ModelBase.load_hparams
    conversion.ModelBase.load_hparams = staticmethod(lambda *args, **kwargs: load(*args, **kwargs) | keys)
    for kind in subclasses(base):
        for name in BYTE_LEVEL:
            if name in kind.__dict__:
                setattr(kind, name, lambda self, *args, **kwargs: self._set_vocab_gpt2())
    sys.argv = ["convert", str(source), "--outfile", str(target), "--outtype", "auto", "--no-lazy", *options]
    convert_hf_to_gguf.main()


def subclasses(kind):
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    llama_cpp, out = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # A process for each, since the converter is changed for it.
    for name, keys in FILES.items():
        run(convert, HERE / name, out / f"{name}.gguf", llama_cpp, keys)
    for name in SPLIT:
        run(convert, HERE / name, out / f"{name}.gguf", llama_cpp, {}, "--split-max-tensors", "8")


def run(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    process.join()
    if process.exitcode != 0:
        sys.exit(f"{args} failed")


if __name__ == "__main__":
    main()
