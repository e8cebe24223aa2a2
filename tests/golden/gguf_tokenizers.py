"""Writes gguf/tokenizers.json: tokenizers as GGUF files carry them, with the ids that tokenizers of Hugging Face
give to texts. `python gguf_tokenizers.py OUT_DIR` writes that file alone.

Every byte-level kind has one vocabulary. It is trained on text that is not cut into words, so that its tokens cross
any bounds, and how a kind cuts the text shows in the ids. The pre-tokenizers are those of the models' tokenizer.json.

byte_level   `metadata` without a kind, and for groups of kinds the ids of each text
spm          for each tokenizer its `metadata`, and the ids of each text
"""

import json
import sys

sys.dont_write_bytecode = True

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers import pre_tokenizers as pre
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

import common

TEXTS = [
    "  two leading, two trailing  ",
    " a  b   c    d     e\n\n\n  f \n \n",
    "\t\tif x:\r\n\t\t\treturn  None\r\n\r\n",
    "I'm sure they've said it's what we'd do; you'll see they're DON'T I'M WE'LL 'tis rock'n'roll",
    "1 12 123 1234 12345 123456 1234567 a1b22 x=3.14159, 1,000,000; v2",
    "x²+y³ ½ ⅷ ①②③ ٣٤٥ १२३",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // ok!?",
    "camelCaseWords HTTPServer XMLHttpRequest iPhone snake_case __init__ a/b/c //",
    "!!! ... ?!?, (a) [b] {c} <d> $5 + 6 = 11 ~ ^ ` | # @home",
    "http://www.example.com/path?q=1&r=2#frag\n/\n",
    "Schöne Grüße, naïve café; ÉCOLE ¿Qué pasó mañana?",
    "cafe\u0301 and caf\u00e9, nai\u0308ve A\u030angstro\u0308m \u1112\u1161\u11ab",
    "Привет, мир! ЁЛКА. Γειά σου Κόσμε",
    "你好，世界！今天2024年天气怎么样？\n日本語のテキストとカタカナ。",
    "안녕하세요 세계 ㄱㄴ ㄅㄆ",
    "مرحبا بالعالم، كيف حالك؟ שלום",
    "नमस्ते दुनिया। สวัสดีชาวโลก",
    "🙂 🙂🙂 👩‍👩‍👧 🇫🇷 ✅ — “quotes” ‘x’…",
    "zero\u200bwidth no\u00a0break\u3000wide\u2028line \ufefftext",
    "a" * 40 + " " + "ab" * 30,
    "x" + " " * 17 + "y" + "\n" * 9 + "z",
    "--------====    ////////",
    "Words hello Words",
    "<|im_start|>user <tool>\n x<tool>  <|im_end|> <|im_start|",
]


# --------------------------------------------------------------------------------------- byte level

TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SLASH_TAIL = TAIL.replace(r"[\r\n]*", r"[\r\n/]*")
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
FIRST = r"[^\r\n\p{L}\p{N}]?"
CAMEL = rf"{FIRST}[{UPPER}]*[{LOWER}]+%s|{FIRST}[{UPPER}]+[{LOWER}]*%s"
GPT4O = CAMEL % (CONTRACTION + "?", CONTRACTION + "?") + r"|\p{N}{1,3}" + SLASH_TAIL
NOT_HAN = r"&&[^\p{Han}]"
KIMI = (
    rf"[\p{{Han}}]+|{FIRST}[{UPPER}{NOT_HAN}]*[{LOWER}{NOT_HAN}]+{CONTRACTION}?"
    rf"|{FIRST}[{UPPER}{NOT_HAN}]+[{LOWER}{NOT_HAN}]*{CONTRACTION}?|\p{{N}}{{1,3}}"
) + TAIL
PUNCTUATED = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ"
    "-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮ"
    "ⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
OLD_CJK = "[一-龥\u0800-一가-\ud7ff]+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

RUNS = "|".join(rf"\s{{{n}}}(?!\S)" for n in ["512", "256", "128", "64", "32", "16", "8", "4", "1,2"]) + r"|\s{1}"

BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre.ByteLevel(add_prefix_space=False)
DIGITS = pre.Digits(individual_digits=True)


def cut(*patterns):
    return [pre.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


# Kinds with the same tokenizer, its pre-tokenizers, and what else is not as usual.
KINDS = [
    (
        "default gpt-2 gpt2 phi-2 gigachat a.x-4.0 mellum exaone4 jais trillion granite-docling jina-es jina-de "
        "jina-v2-es jina-v2-de modern-bert",
        [GPT2],
        {},
    ),
    ("mpt olmo", [GPT2], {"nfc": True}),
    ("starcoder smollm refact codeshell exaone minerva-7b mellum2", [DIGITS, GPT2], {}),
    ("command-r", [DIGITS, GPT2], {"nfc": True}),
    (
        "falcon",
        [pre.Punctuation("contiguous"), GPT2, pre.Digits(individual_digits=False), *cut("[0-9][0-9][0-9]")],
        {},
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        cut(WORD + r"|\p{N}{1,3}" + TAIL) + [BYTES],
        {"whole": True, "bos": True},
    ),
    ("chatglm-bpe glm4", cut(WORD + r"|\p{N}{1,3}" + TAIL) + [BYTES], {"whole": True}),
    ("smaug-bpe dbrx", cut(WORD + r"|\p{N}{1,3}" + TAIL) + [BYTES], {}),
    ("qwen2 deepseek-r1-qwen megrez kormo f2llmv2", cut(WORD + r"|\p{N}" + TAIL) + [BYTES], {"nfc": True}),
    (
        "qwen35",
        cut(
            CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ) + [BYTES],
        {"nfc": True},
    ),
    ("stablelm2 hunyuan solar-open grok-2", cut(WORD + r"|\p{N}" + TAIL) + [BYTES], {}),
    ("ufakzeka", cut(FIRST + r"\p{L}+|\p{N}" + TAIL) + [BYTES], {}),
    (
        "deepseek-llm",
        cut("[\r\n]", rf"\s?[{CASED}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", OLD_CJK) + [DIGITS, BYTES], {},
    ),
    ("deepseek-coder", cut("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", OLD_CJK) + [DIGITS, BYTES], {}),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", cut(r"\p{N}{1,3}", CJK, PUNCTUATED) + [BYTES], {}),
    ("tekken", cut(CAMEL % ("", "") + r"|\p{N}" + SLASH_TAIL) + [BYTES], {"whole": True, "bos": True}),
    ("gpt-4o llama4", cut(GPT4O) + [BYTES], {"whole": True}),
    ("kanana2 talkie minimax-m2", cut(GPT4O) + [BYTES], {}),
    ("kimi-k2", cut(KIMI) + [BYTES], {"whole": True}),
    ("tiny_aya cohere2moe", cut(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O) + [BYTES], {}),
    (
        "bailingmoe bailingmoe2 llada-moe",
        cut(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
            r"|\s+(?!\S)|\s+"
        ) + [BYTES],
        {},
    ),
    (
        "seed-coder",
        cut(WORD + "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+") + [BYTES], {},
    ),
    ("jais-2", cut(WORD + r"|\p{N}{1,3}" + TAIL.removesuffix(r"\s+(?!\S)|\s+") + RUNS) + [BYTES], {}),
    (
        "exaone-moe",
        cut(
            CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ) + [BYTES],
        {},
    ),
    ("minicpm5", cut(r"\p{N}{1,3}", WORD + r"|\p{N}+" + TAIL) + [BYTES], {"whole": True}),
    (
        "youtu",
        cut("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + CJK, GPT4O.replace(r"\p{N}{1,3}", r"\p{N}")) + [BYTES],
        {"whole": True},
    ),
    (
        "spark2_5",
        cut(r"\p{N}{1,3}", CJK, PUNCTUATED.replace("[\r\n]*|\\s*[\r\n]+", "|[\r\n]")) + [DIGITS, BYTES], {},
    ),
    ("superbpe", cut(r"\p{N}+", r"(?=(\d{3})+(?!\d))") + [BYTES], {}),
    ("bloom poro-chat gpt3-finnish", cut(BLOOM) + [BYTES], {}),
    ("viking", cut(BLOOM) + [DIGITS, BYTES], {}),
]


def byte_level():
    tokens, merges = byte_level_vocabulary()
    types = [3 if token in common.GPT2_SPECIAL else 4 if token == "<tool>" else 1 for token in tokens]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": tokens.index("<|bos|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }
    groups = []
    for kinds, steps, flags in KINDS:
        tokenizer = Tokenizer(BPE(dict(zip(tokens, range(len(tokens)))), merges, ignore_merges="whole" in flags))
        tokenizer.pre_tokenizer = pre.Sequence(steps)
        if "nfc" in flags:
            tokenizer.normalizer = normalizers.NFC()
        if "bos" in flags:
            bos = ("<|bos|>", tokens.index("<|bos|>"))
            tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in common.GPT2_SPECIAL])
        tokenizer.add_tokens([common.ADDED])
        groups.append({"kinds": kinds.split(), "ids": [tokenizer.encode(text).ids for text in TEXTS]})
    # Most kinds agree on most texts.
    different = [[] for _ in TEXTS]
    for group in groups:
        for i, ids in enumerate(group["ids"]):
            if ids not in different[i]:
                different[i].append(ids)
            group["ids"][i] = different[i].index(ids)
    return {"metadata": metadata, "ids": different, "groups": groups}


def byte_level_vocabulary():
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = BYTES
    trainer = BpeTrainer(
        vocab_size=1100, special_tokens=common.GPT2_SPECIAL, initial_alphabet=sorted(BYTES.alphabet()),
        max_token_length=8, show_progress=False,
    )
    tokenizer.train_from_iterator(common.CORPUS + [part for text in TEXTS for part in text.split("<")], trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    # "Words" cannot be merged: only who takes words whole finds it.
    tokens += ["ĠWords", "Words", "<tool>"]
    return tokens, [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


# -------------------------------------------------------------------------------------------- SPM


GEMMA = {
    "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "added": ["<table>", "</table>", "<b>", *("\n" * n for n in range(1, 6)), *(" " * n for n in range(2, 6))],
    "prefix": False,
    "first": False,
}


def spm():
    return {
        "llama": spm_case(["<unk>", "<s>", "</s>"], added=["<tool>"]),
        "gemma": spm_case(**GEMMA),
        "gemma4": spm_case(**GEMMA, merges=True),
        "phi3": spm_case(
            ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>"], added=["<tool>"],
            rstrip=True, metadata={"general.architecture": "phi3"},
        ),
    }


SPM_TEXTS = TEXTS[:5] + TEXTS[6:8] + TEXTS[10:15] + TEXTS[17:22] + [
    "",
    " ",
    "▁x ▁▁y",
    "a <s> b</s>c <unk>\n<s>\n d</s>  e",
    "<|user|>\n Hi<|end|>\n\t<|user|> x<|endoftext|> \ny<tool> z",
    "<start_of_turn>user\nHi  <b>x</b><end_of_turn>\n<table>\n\n<bos>  y",
    "<0x41> \u0000 \ufffd",
]


def spm_case(special, added, prefix=True, first=True, rstrip=False, merges=False, metadata={}):
    """`first`: whether the bytes and pieces come before the tokens that the makers added, as in Llama.

    Merges go by the scores of what they make, unless the file has a list of them.
    """
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    pieces = common.spm_pieces(420)
    tokens = special + (bytes_ + pieces + added if first else added + bytes_ + pieces)
    ids = {token: i for i, token in enumerate(tokens)}
    scores = {piece: -float(i) for i, piece in enumerate(pieces)}
    model = BPE(ids, common.spm_merges(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence(steps + [normalizers.Replace(" ", "▁")])
    bos = special[1] if prefix else "<bos>"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    strips = lambda token: rstrip and token not in ["<unk>", "<s>", "<|endoftext|>"]
    token = lambda text, special: AddedToken(text, normalized=False, special=special, rstrip=strips(text))
    tokenizer.add_special_tokens([token(text, True) for text in special])
    tokenizer.add_tokens([token(text, False) for text in added])
    kinds = {"<unk>": 2} | {t: 3 for t in special if t != "<unk>"} | {t: 4 for t in added} | {t: 6 for t in bytes_}
    eos = "<eos>" if "<eos>" in ids else "</s>"
    if merges:
        order = {"tokenizer.ggml.merges": [" ".join(pair) for pair in common.spm_merges(pieces)]}
    else:
        order = {"tokenizer.ggml.scores": [scores.get(t, -1000.0) for t in tokens]}
    return {
        "metadata": {
            "tokenizer.ggml.model": "gemma4" if merges else "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens,
            **order,
            "tokenizer.ggml.token_type": [kinds.get(t, 1) for t in tokens],
            "tokenizer.ggml.bos_token_id": ids[bos],
            "tokenizer.ggml.eos_token_id": ids[eos],
            "tokenizer.ggml.unknown_token_id": ids["<unk>"],
            "tokenizer.ggml.add_space_prefix": prefix,
            **metadata,
        },
        "ids": [tokenizer.encode(text).ids for text in SPM_TEXTS],
    }


def write(out):
    value = {"texts": TEXTS, "byte_level": byte_level(), "spm_texts": SPM_TEXTS, "spm": spm()}
    common.write_json(out / "gguf/tokenizers.json", value)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
