"""Writes added_tokens.json: directories whose files name added tokens in many ways, with what AutoTokenizer makes of them.
`python added_tokens.py`, with transformers 5.23.

Each has the tokenizer.json of `mha_tied`, without its added tokens and with some in the vocabulary. `added_tokens` is what
is put there in their place, `files` are the others. `tokens` are the added tokens that come of it: id, content, whether
it is special and takes the space before and after it. `cases` are texts, their ids, and the text of these
without special tokens.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).parent
IN_VOCABULARY = ["<|im_start|>", "<|im_end|>", "<|a|>", "<|b|>"]
TEXTS = ["x <|im_start|> y <|a|> z<|b|>", "<|im_end|> <|a|>  <|new|><tool> w"]


def token(content, **flags):
    usual = dict(lstrip=False, rstrip=False, normalized=False, single_word=False, special=True)
    return dict(content=content) | usual | flags


CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast"}
A = token("<|a|>", rstrip=True)
DIRECTORIES = {
    "a vocabulary alone": ([], CONFIG, {}),
    "no configuration": ([A], None, {}),
    "a list of tokens": ([], {"added_tokens_decoder": {"9": token("<|a|>", special=False, rstrip=True), "7": token("<|im_start|>")}}, {}),
    "a token that is new": ([], {"added_tokens_decoder": {"5": token("<|new|>")}}, {}),
    "several that are new": ([A], {"added_tokens_decoder": {"6": token("<|new|>"), "2": token("<tool>", special=False)}, "pad_token": "[PAD]"}, {}),
    "special there only": ([A | {"special": False}], {"added_tokens_decoder": {"9": A}}, {}),
    "no longer special": ([A], {"added_tokens_decoder": {"9": A | {"special": False}}}, {}),
    "an end as text": ([], {"eos_token": "<|im_end|>"}, {}),
    "an end as object": ([], {"eos_token": token("<|im_end|>", rstrip=True, __type="AddedToken")}, {}),
    "an end that is added": ([A], {"eos_token": "<|a|>"}, {}),
    "names of their own": ([], {"image_token": "<|a|>", "eot_token": "<|im_end|>"}, {}),
    "a list of names": ([A], {"additional_special_tokens": ["<|a|>", "<|b|>", "<|new|>"]}, {}),
    "a newer list of names": ([], {"extra_special_tokens": ["<|im_start|>"]}, {}),
    "a map of names": ([], {"extra_special_tokens": {"image_token": "<|a|>", "end": "<|im_end|>"}}, {}),
    "a map file": ([], {"eos_token": "<|b|>"}, {"special_tokens_map.json": {"eos_token": token("<|im_end|>", lstrip=True), "additional_special_tokens": ["<|a|>"]}}),
    "a map file that is not read": ([], {"added_tokens_decoder": {"1": token("<|b|>")}}, {"special_tokens_map.json": {"eos_token": "<|im_end|>"}, "added_tokens.json": {"<|a|>": 3}}),
    "a file of added tokens": ([], {}, {"added_tokens.json": {"<|a|>": 3, "<|new|>": 1}}),
    "a file of them, some special": ([], {"eos_token": "<|a|>"}, {"added_tokens.json": {"<|a|>": 3, "<|b|>": 1}}),
}


def write(directory, added, config, files):
    tokenizer = json.loads((HERE / "mha_tied/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for content in IN_VOCABULARY:
        vocabulary.setdefault(content, len(vocabulary))
    tokenizer["added_tokens"] = [{"id": vocabulary[a["content"]]} | a for a in added]
    files = files | {"tokenizer.json": tokenizer, "config.json": {"model_type": "llama"}}
    if config is not None:
        files["tokenizer_config.json"] = CONFIG | config
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))


def main():
    from transformers import AutoTokenizer

    out = []
    for name, (added, config, files) in DIRECTORIES.items():
        with tempfile.TemporaryDirectory() as directory:
            write(Path(directory), added, config, files)
            tokenizer = AutoTokenizer.from_pretrained(directory)
        tokens = sorted(tokenizer.added_tokens_decoder.items())
        if config is not None:
            files = files | {"tokenizer_config.json": CONFIG | config}
        cases = []
        for text in TEXTS:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            cases.append([text, ids, tokenizer.decode(ids, skip_special_tokens=True)])
        tokens = [[id, t.content, t.special, t.lstrip, t.rstrip] for id, t in tokens]
        out.append({"name": name, "added_tokens": added, "files": files, "tokens": tokens, "cases": cases})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in out)
    vocabulary = json.dumps(IN_VOCABULARY)
    (HERE / "added_tokens.json").write_text(f'{{"in_vocabulary": {vocabulary}, "directories": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
