"""What the generators share: the tiny tokenizers, the torch reference and the JSON format."""

import json
import random
from collections import Counter

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast

GREEDY_TOKENS = 24

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then the dog sleeps in the sun.",
    "Language models continue a text one token at a time; the next token depends on all the others.",
    "It's what they're saying: we've seen that you'd rather not, and I'm sure they'll agree.",
    "def main(args):\n    for i in range(10):\n        print(i, args)\n    return None\n",
    "In 1984 there were 365 days, 12 months and 52 weeks; 3.14159 is not 2.71828.",
    "Der schnelle braune Fuchs springt über den faulen Hund. Schöne Grüße aus Köln!",
    "Le vif renard brun saute par-dessus le chien paresseux, à côté de la forêt.",
    "El veloz zorro marrón salta sobre el perro perezoso. ¿Qué pasó mañana?",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "素早い茶色の狐はのろまな犬を飛び越える。世界",
    "敏捷的棕色狐狸跳过了懒狗。你好，世界！",
    "다람쥐 헌 쳇바퀴에 타고파.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "Emoji: 🙂 🚀 👩‍👩‍👧 and 🇫🇷 are fun 🙂🙂",
]

SHORT = "The dog"
LONG = (
    "Once there was a fox that lived near the sea; in 1984 it jumped over the lazy dog and the sun."
)
MULTILINGUAL = "Schöne Grüße, 世界! Привет 👩‍👩‍👧 and 🚀"
PROMPTS = [SHORT, LONG, MULTILINGUAL]

ENCODE_TEXTS = [
    "",
    " ",
    "a",
    " leading",
    "   three  two \n\n\ttab \r\n end  ",
    "It's 12345 tokens, they'RE 3.14 DON'T",
    "    return None\n",
    "naïve café — “quotes” … Ωmega",
    "你好，世界！ 다람쥐 العربية हिन्दी",
    "🙂👩‍👩‍👧🇫🇷🚀 x",
    "x <tool> y<tool>z",
]

# --------------------------------------------------------------------------------------- tokenizers

GPT2_SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# An added token that is not special: a GGUF file calls it user-defined.
ADDED = AddedToken("<tool>", normalized=False, special=False)


def gpt2_tokenizer(vocab_size=320):
    """Byte-level BPE as GPT-2's: special tokens first, none is added to a text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    train_byte_level(tokenizer, vocab_size - 1, GPT2_SPECIAL)
    tokenizer.add_tokens([ADDED])
    return wrap(tokenizer, bos_token="<|bos|>", eos_token="<|im_end|>")


def llama3_tokenizer(vocab_size=320):
    """Byte-level BPE as Llama 3's: its own split, whole words first, special tokens last, begins a text."""
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    train_byte_level(tokenizer, vocab_size - len(LLAMA3_SPECIAL), [])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in LLAMA3_SPECIAL])
    bos = LLAMA3_SPECIAL[0]
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        ),
    ])
    return wrap(tokenizer, bos_token=bos, eos_token="<|eot_id|>")


def train_byte_level(tokenizer, vocab_size, special):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def spm_tokenizer(vocab_size=400):
    """What Llama 2's SentencePiece model becomes as tokenizer.json: BPE with byte fallback."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    pieces = spm_pieces(vocab_size - len(special) - len(bytes_) - 1)
    vocab = {token: i for i, token in enumerate(special + bytes_ + pieces)}
    model = BPE(vocab=vocab, merges=spm_merges(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([ADDED])
    return wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spm_pieces(count):
    """Pieces by falling score, as SentencePiece lists them: merged ones first, then characters."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    lines = [line.replace("\n", " ") for line in CORPUS]
    frequency = Counter("".join(lines).replace(" ", "▁"))
    alphabet = sorted(frequency, key=lambda char: (-frequency[char], char))[:60]
    trainer = BpeTrainer(
        vocab_size=count, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    trained = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in trained]
    return [p for p in pieces if len(p) > 1] + [p for p in pieces if len(p) == 1]


def spm_merges(pieces):
    """Every way to merge two pieces into a third, so that merging by rank is merging by score."""
    known = set(pieces)
    return [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]


def wrap(tokenizer, **special):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=512, **special
    )


# ---------------------------------------------------------------------------------- expected results


def encode_cases(tokenizer):
    """Texts with their ids; special tokens within the text are recognised, those around it are added."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = ENCODE_TEXTS + [f"a {special[0]}b {special[-1]} c{special[-1]}"]
    return [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts]


def decode_cases(tokenizer):
    """Id sequences, whole and cut in the middle of characters, with their texts."""
    rng = random.Random(7)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    special = [i for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    emoji, cjk = encode("🚀"), encode("猫犬")
    cases = [
        [],
        encode("Hello, world!"),
        encode("  two leading"),
        encode("a  b   c \n\n d  "),
        encode(" one") + encode(" two"),
        encode("Schöne 🙂👩‍👩‍👧 世界"),
        emoji[:-1],
        emoji[:-2],
        emoji[1:],
        encode("ok ") + emoji[:-1] + encode("!"),
        cjk[:-1],
        encode("x") + cjk[:-2],
        encode("The") + special + encode(" dog 世界"),
        emoji[:-1] + special[-1:] + emoji[-1:],
        special[:1] + encode("  text") + special[-1:],
        encode("x<tool> y"),
        [rng.randrange(len(tokenizer)) for _ in range(24)],
        [rng.randrange(len(tokenizer)) for _ in range(24)],
    ]
    return [{"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)} for ids in cases]


def expected_prompts(model, tokenizer, texts, margin, distinct=8, cached=False):
    """Logits after each prompt and greedy continuations, all computed in f32.

    None if the continuations are not clear: the best logit must lead by `margin` at every step, so that
    small errors change nothing, and a continuation must not say the same all the time. With `cached`, keys
    and values of tokens stay as they were computed first.
    """
    prompts = []
    for text in texts:
        prompt = expected_prompt(model, tokenizer, text, margin, cached)
        if prompt is None or len(set(prompt["greedy"])) < distinct:
            return None
        prompts.append(prompt)
    return prompts


def expected_prompt(model, tokenizer, text, margin, cached=False):
    cache = DynamicCache() if cached else None
    return expected_prompt_of(lambda ids: last_logits(model, ids, cache), tokenizer, text, margin)


def expected_prompt_of(logits_after, tokenizer, text, margin):
    """As `expected_prompts`, of one text and anything that gives logits."""
    ids = tokenizer(text)["input_ids"]
    first = logits_after(ids)
    logits, sequence, greedy, margins = first, list(ids), [], []
    for _ in range(GREEDY_TOKENS):
        top = torch.topk(logits, 2)
        margins.append(rounded(float(top.values[0] - top.values[1]), 4))
        if margins[-1] < margin:
            return None
        greedy.append(int(top.indices[0]))
        sequence.append(greedy[-1])
        logits = logits_after(sequence)
    prompt, whole = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (ids, sequence))
    return {
        "text": text,
        "ids": ids,
        "logits": [rounded(x) for x in first.tolist()],
        "greedy": greedy,
        "margins": margins,
        "greedy_text": whole[len(prompt) :],
    }


@torch.no_grad()
def last_logits(model, ids, cache=None):
    ids = ids if cache is None else ids[cache.get_seq_length() :]
    return model(torch.tensor([ids]), past_key_values=cache, use_cache=cache is not None).logits[0, -1]


# ------------------------------------------------------------------------------------------- weights


def random_model(config, seed, std=0.2, embedding_std=0.2, loudness=0.0):
    """A model whose every parameter is random, norms and biases too.

    `loudness` varies the lengths of the rows of the output matrix: a few tokens then lead by more.
    """
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if ("norm" in name or ".ln_" in name) and not name.endswith("bias"):
            noise = 1 + 0.25 * noise
        elif "embed_tokens" in name:
            noise = embedding_std * noise
        else:
            noise = std * noise
        if name == "lm_head.weight" and loudness:
            noise *= torch.exp(loudness * torch.randn((config.vocab_size, 1), generator=generator))
        parameter.data = noise
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(std * torch.randn(buffer.shape, generator=generator))
    model.tie_weights()
    return model


# ---------------------------------------------------------------------------------------------- JSON


def rounded(x, digits=7):
    return float(f"{x:.{digits}g}")


def write_json(path, value, indent=None):
    separators = (",", ":") if indent is None else None
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, separators=separators, indent=indent)
    path.write_text(text + "\n", encoding="utf-8", newline="")
