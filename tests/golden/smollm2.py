"""Writes the references for SmolLM2-135M-Instruct.Q4_1.gguf: its tokenizer, chat template and logits.

    python smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR     # OUT_DIR is smollm2/ beside this file

Written with Python 3.11, llama-cpp-python 0.3.36, transformers 5.23.0, torch 2.15.0 (CPU) and gguf 0.19.0.
The logits of llama.cpp differ a little between processors; everything else is the same everywhere.

tokenize.json   ids of llama.cpp (special tokens parsed, none added); `transformers` where its ids differ
chat.json       renders by transformers, with the ids of llama.cpp
greedy.json     greedy continuations by llama.cpp with the margin between the best two logits at each step
logits.json     logits after a prompt, by llama.cpp and by transformers from the dequantised weights
"""

import random
import sys

sys.dont_write_bytecode = True

from pathlib import Path

import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import rounded, write_json

GREEDY_TOKENS = 48
SAMPLED_IDS = 200

TEXTS = [
    "",
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n\n",
    "\t",
    " \t \n \r\n ",
    "\r\n\r\n",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "  two leading spaces and  two  inside   three ",
    "tabs\tand\t\ttwo tabs\t",
    "line one\nline two\n\nline four\n",
    "line one\r\nline two\r\n",
    "I'm sure they've said it's what we'd do; you'll see, aren't they're.",
    "I'M SURE THEY'VE SAID IT'S WHAT WE'D DO; DON'T",
    "It’s “curly” – and — so on…",
    "rock'n'roll 'quoted' ''double''",
    "1",
    "12",
    "123",
    "1234567890",
    "3.14159 and 1,000,000 or -42 and 1e-9, 0xFF, 50%",
    "v1.2.3-rc4 on 2024-07-26T12:34:56Z",
    "x²+y³ ½ ⅷ ①②③ ٣٤٥ १२३",
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return None\n",
    "fn main() {\n\tlet mut v: Vec<u32> = vec![1, 2, 3];\n\tprintln!(\"{:?}\", v);\n}\n",
    "<div class=\"a b\">\n  <p>&nbsp;text</p>\n</div>",
    "{\"key\": [1, 2.5, null], \"nested\": {\"a\": \"b\\n\"}}",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case __init__",
    "a+b=c; d-=e; f*=g; h/=i; !@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "https://www.example.com/path/to/page.html?query=1&other=two#fragment",
    "mail someone@example.org or visit www.example.org.",
    "C:\\Program Files\\Rust\\bin\\cargo.exe",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "你好，世界！今天天气怎么样？",
    "日本語のテキストとカタカナ、ひらがな。",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "Schöne Grüße aus Köln, naïve café, ¿Qué pasó mañana?",
    "cafe\u0301 and caf\u00e9",
    "🙂",
    " 🙂 🙂🙂",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb, 🇫🇷🇩🇪",
    "zero\u200bwidth, no\u00a0break, thin\u2009space, ideographic\u3000space",
    "\u00a0\u00a0x\u2028y\u2029z\u0085",
    "nul\u0000 bell\u0007 escape\u001b del\u007f",
    "\ufefftext after a byte order mark, and \ufffd",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text <|im_end|> text<|endoftext|>text",
    "<|im_end|><|im_end|>",
    " <|im_start|> ",
    "<|im_start|",
    "<|IM_START|> <im_start> | im_end |>",
    "<repo_name>a/b<file_sep>x.py\n<gh_stars>10<jupyter_code>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "--------------------------------------------------",
    "= = = ===  ====\t=====",
    "end with newline and spaces  \n  ",
]


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = [
    say(("user", "Hello")),
    say(("system", "You answer with one word."), ("user", "Is the sky blue?")),
    say(("user", "What is 2 + 2?"), ("assistant", "4"), ("user", "And times 10?")),
    say(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Who are you?")),
    say(("user", "  leading and trailing  \n")),
    say(("system", "\n system \n"), ("user", "\tuser "), ("assistant", " assistant\n\n"), ("user", "\r\nagain")),
    say(("user", "")),
    say(("user", "你好 👩‍👩‍👧 <b>\"quotes\"</b> & {{ braces }}")),
    say(("user", "def f():\n    return 1\n")),
    say(("user", "one"), ("user", "two"), ("system", "late")),
]
RAW_PROMPTS = {
    "france": "The capital of France is",
    "counting": "1, 2, 3, 4, 5, 6,",
    "story": "Once upon a time, in a small village by the sea, there lived",
    "code": "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
}
CHAT_PROMPTS = {
    "chat-sky": say(("user", "Why is the sky blue? Answer in one sentence.")),
    "chat-system": say(("system", "You are a pirate."), ("user", "Introduce yourself.")),
    "chat-turns": say(("user", "What is the capital of Italy?"), ("assistant", "Rome."), ("user", "And of Spain?")),
    "chat-list": say(("user", "List three fruits.")),
}
LOGIT_PROMPTS = ["The capital of France is", "2 + 2 ="]


class Engine:
    """llama.cpp with two threads and the cache in f32."""

    def __init__(self, path):
        self.llama = llama_cpp.Llama(
            str(path), n_ctx=1024, n_threads=2, n_threads_batch=2, n_gpu_layers=0, verbose=False,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        )

    def tokenize(self, text):
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def start(self, ids):
        self.llama.reset()
        return self.eval(ids)

    def eval(self, ids):
        """The logits after these further ids."""
        self.llama.eval(ids)
        pointer = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),)).copy()


def tokenize_cases(engine, tokenizer):
    cases = []
    for text in TEXTS:
        case = {"text": text, "ids": engine.tokenize(text)}
        other = tokenizer(text, add_special_tokens=False)["input_ids"]
        cases.append(case if other == case["ids"] else case | {"transformers": other})
    return cases


def render(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def chat_cases(engine, tokenizer):
    cases = []
    for messages in CONVERSATIONS:
        text = render(tokenizer, messages)
        cases.append({"messages": messages, "text": text, "ids": engine.tokenize(text)})
    return cases


def greedy_cases(engine, tokenizer):
    cases = []
    for name, text in RAW_PROMPTS.items():
        cases.append({"name": name, "prompt": text} | greedy(engine, tokenizer, text))
    for name, messages in CHAT_PROMPTS.items():
        text = render(tokenizer, messages)
        cases.append({"name": name, "messages": messages, "prompt": text} | greedy(engine, tokenizer, text))
    return cases


def greedy(engine, tokenizer, text):
    """At most GREEDY_TOKENS ids, ending early with the end of the turn, which is then the last of them."""
    ids = engine.tokenize(text)
    logits = engine.start(ids)
    tokens, margins = [], []
    for _ in range(GREEDY_TOKENS):
        second, best = np.argsort(logits)[-2:]
        tokens.append(int(best))
        margins.append(rounded(float(logits[best] - logits[second]), 5))
        if best == tokenizer.eos_token_id:
            break
        logits = engine.eval([int(best)])
    output = tokenizer.decode(tokens, skip_special_tokens=True)
    return {"ids": ids, "tokens": tokens, "margins": margins, "text": output}


def logit_cases(engine, model):
    sample = sorted(random.Random(0).sample(range(engine.llama.n_vocab()), SAMPLED_IDS))
    cases = []
    for text in LOGIT_PROMPTS:
        ids = engine.tokenize(text)
        logits = engine.start(ids)
        with torch.no_grad():
            exact = model(torch.tensor([ids])).logits[0, -1].numpy()
        top = np.argsort(-logits)[:10]
        cases.append({
            "prompt": text,
            "ids": ids,
            "sampled_ids": sample,
            "logits": [rounded(float(logits[i])) for i in sample],
            "dequantized_f32": [rounded(float(exact[i])) for i in sample],
            "top_ids": [int(i) for i in top],
            "top_logits": [rounded(float(logits[i])) for i in top],
            "top_dequantized_f32": [rounded(float(exact[i])) for i in top],
        })
    return cases


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(2)
    engine = Engine(path)
    given = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32).eval()
    write_json(out / "tokenize.json", {"cases": tokenize_cases(engine, tokenizer)})
    write_json(out / "chat.json", {"cases": chat_cases(engine, tokenizer)})
    write_json(out / "greedy.json", {"cases": greedy_cases(engine, tokenizer)})
    write_json(out / "logits.json", {"cases": logit_cases(engine, model)})


if __name__ == "__main__":
    main()
