"""How llama.cpp cuts texts into words, by the kinds of pre-tokenizers.

    python gguf_words.py OUT_DIR

Writes a vocabulary whose merges know no words, so that every cut shows, and the ids llama.cpp gives with it; written
with llama-cpp-python 0.3.36.
"""

import json
import sys
import tempfile
import unicodedata

sys.dont_write_bytecode = True

from pathlib import Path

import gguf
from llama_cpp import Llama
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

import common

KINDS = [
    "gpt-2", "smollm", "command-r", "llama-bpe", "smaug-bpe", "chatglm-bpe", "qwen2", "stablelm2", "qwen35", "gpt-4o",
    "tekken", "seed-coder", "bailingmoe", "deepseek-coder", "deepseek-v3", "bloom", "viking",
]
TEXTS = [text for text in common.ENCODE_TEXTS + common.CORPUS if text] + [
    "Numbers: 1 12 123 1234 12345678 1,234.56 0x1F ٣٤٥ ½",
    "CamelCase HTTPServer iPhone x86_64 don't DON'T I'll We'VE it's",
    "if (a && b) {\n\t\treturn x[i] != 0;\n\n\n}  // done!!\n",
    "a  b   c    d\t\te \n \n  f\r\n\r\ng   ",
    "path/to/file.rs::fn<T>() -> Result<(), E>;; ### ***",
    "tab\tand\u00a0space\u3000wide … — “quoted” (parens) [brackets]",
    "e\u0301 combining, ñ, Å, ﬁ, Straße, İstanbul, ǅ",
    "中文和English混排，数字１２３。日本語のテキスト！",
]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Pieces of lines, whatever is in them.
    pieces = [text[i : i + 7] for text in common.CORPUS + TEXTS for i in range(0, len(text), 3)]
    trainer = BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pieces, trainer)
    write(out / "vocabulary.gguf", tokenizer, "gpt-2")
    ids = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            write(path, tokenizer, kind)
            model = Llama(str(path), vocab_only=True, verbose=False)
            # Qwen's own tokenizers compose characters first.
            form = (lambda text: unicodedata.normalize("NFC", text)) if kind.startswith("qwen") else str
            ids[kind] = [model.tokenize(form(text).encode(), add_bos=False, special=False) for text in TEXTS]
            if kind in ["gpt-4o", "tekken"]:
                # llama.cpp cuts these before combining marks, the originals do not.
                ids[kind] = [None if has_marks(text) else of for text, of in zip(TEXTS, ids[kind])]
    common.write_json(out / "expected.json", {"texts": TEXTS, "ids": ids})


def has_marks(text):
    return any(unicodedata.category(char).startswith("M") for char in text)


def write(path, tokenizer, kind):
    writer = gguf.GGUFWriter(path, "llama")
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
