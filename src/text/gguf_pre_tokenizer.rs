//! Pre-tokenizers of byte-level GGUF files, by their `tokenizer.ggml.pre`.
//!
//! The steps follow the models' own `tokenizer.json`. llama.cpp, which named the kinds, rewrites many of them for its
//! own regular expressions and normalizes nothing. It differs for decomposed characters where `nfc` is set, for
//! combining marks in the words of Tekken and GPT-4o, for numbers of Falcon, which never join the space before them,
//! and for rare spaces and letters such as U+2028 and "ſ".

use tokenizers::{SplitDelimiterBehavior, pre_tokenizers::punctuation::Punctuation};

use super::{
    pattern::{BoxError, Pattern},
    pre_tokenizer::{PreTokenizer, PreTokenizerStep},
};

/// A kind of pre-tokenizer, with the settings that come with it.
pub struct GgufPreTokenizer {
    steps: &'static [GgufStep],
    /// Whether text is composed first.
    pub nfc: bool,
    /// Whether a word that is a token is taken whole, however it would merge.
    pub whole: bool,
    /// Whether texts begin with a BOS token unless the file says otherwise.
    pub adds_bos: bool,
}

/// Each step cuts the pieces of the one before.
#[derive(Clone, Copy)]
enum GgufStep {
    /// Isolates the matches of a regular expression.
    Cut(&'static str),
    /// Every digit stands alone.
    EachDigit,
    /// Digits stand apart from all else.
    Numbers,
    PunctuationRuns,
    /// GPT-2's own words, and from there on bytes.
    Gpt2,
    Bytes,
}

use GgufStep::{Bytes, Cut, EachDigit, Gpt2, Numbers, PunctuationRuns};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI_K2: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
const SPARK: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+|[\r\n]|\\s+(?!\\S)|\\s+";
const DEEPSEEK_CJK: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_PUNCTUATION: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const YOUTU_CJK: &str = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+";

impl GgufPreTokenizer {
    /// The pre-tokenizer of a kind, or none if it is unknown.
    pub fn of(kind: &str) -> Option<Self> {
        let of = |steps| Self { steps, nfc: false, whole: false, adds_bos: false };
        let composed = |steps| Self { nfc: true, ..of(steps) };
        let whole = |steps| Self { whole: true, ..of(steps) };
        Some(match kind {
            "default" | "gpt-2" | "gpt2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "exaone4" | "jais"
            | "trillion" | "granite-docling" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" | "modern-bert" => {
                of(&[Gpt2])
            }
            "mpt" | "olmo" => composed(&[Gpt2]),
            "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                of(&[EachDigit, Gpt2])
            }
            "command-r" => composed(&[EachDigit, Gpt2]),
            "falcon" => of(&[PunctuationRuns, Gpt2, Numbers, Cut("[0-9][0-9][0-9]")]),
            "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "jina-v5-nano" => Self { adds_bos: true, ..whole(&[Cut(LLAMA3), Bytes]) },
            "smaug-bpe" | "dbrx" => of(&[Cut(LLAMA3), Bytes]),
            "qwen2" | "deepseek-r1-qwen" | "megrez" | "kormo" | "f2llmv2" => composed(&[Cut(QWEN2), Bytes]),
            "qwen35" => composed(&[Cut(QWEN35), Bytes]),
            "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => of(&[Cut(QWEN2), Bytes]),
            "ufakzeka" => of(&[Cut(UFAKZEKA), Bytes]),
            "deepseek-llm" => of(&[
                Cut("[\r\n]"),
                Cut(DEEPSEEK_LETTERS),
                Cut(DEEPSEEK_PUNCTUATION),
                Cut(r"\s+$"),
                Cut(DEEPSEEK_CJK),
                EachDigit,
                Bytes,
            ]),
            "deepseek-coder" => {
                of(&[Cut("[\r\n]"), Cut(r"\s?\p{L}+"), Cut(r"\s?\p{P}+"), Cut(DEEPSEEK_CJK), EachDigit, Bytes])
            }
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
                of(&[Cut(r"\p{N}{1,3}"), Cut(CJK), Cut(DEEPSEEK3), Bytes])
            }
            "spark2_5" => of(&[Cut(r"\p{N}{1,3}"), Cut(CJK), Cut(SPARK), EachDigit, Bytes]),
            "youtu" => whole(&[Cut(YOUTU_CJK), Cut(YOUTU), Bytes]),
            "tekken" => Self { adds_bos: true, ..whole(&[Cut(TEKKEN), Bytes]) },
            // Made for tiktoken, which takes words whole.
            "glm4" | "chatglm-bpe" => whole(&[Cut(LLAMA3), Bytes]),
            "gpt-4o" | "llama4" => whole(&[Cut(GPT4O), Bytes]),
            "kimi-k2" => whole(&[Cut(KIMI_K2), Bytes]),
            "kanana2" | "talkie" | "minimax-m2" => of(&[Cut(GPT4O), Bytes]),
            "tiny_aya" | "cohere2moe" => of(&[Cut(r"\d{1,3}(?=(?:\d{3})*\b)"), Cut(GPT4O), Bytes]),
            "bailingmoe" | "bailingmoe2" | "llada-moe" => of(&[Cut(BAILING), Bytes]),
            "seed-coder" => of(&[Cut(SEED_CODER), Bytes]),
            "minicpm5" => whole(&[Cut(r"\p{N}{1,3}"), Cut(MINICPM5), Bytes]),
            "superbpe" => of(&[Cut(r"\p{N}+"), Cut(r"(?=(\d{3})+(?!\d))"), Bytes]),
            "jais-2" => of(&[Cut(JAIS2), Bytes]),
            "exaone-moe" => of(&[Cut(EXAONE_MOE), Bytes]),
            "bloom" | "poro-chat" | "gpt3-finnish" => of(&[Cut(BLOOM), Bytes]),
            "viking" => of(&[Cut(BLOOM), EachDigit, Bytes]),
            _ => return None,
        })
    }

    /// The steps, the last of which gives bytes.
    pub fn steps(&self) -> Result<PreTokenizer, BoxError> {
        let mut steps = Vec::new();
        for step in self.steps {
            match *step {
                Cut(pattern) => steps.push(PreTokenizerStep::isolated(Pattern::regex(pattern)?)),
                EachDigit => steps.push(PreTokenizerStep::isolated(Pattern::numeric(true))),
                Numbers => steps.push(PreTokenizerStep::isolated(Pattern::numeric(false))),
                PunctuationRuns => {
                    let runs = Punctuation::new(SplitDelimiterBehavior::Contiguous);
                    steps.push(PreTokenizerStep::Foreign(Box::new(runs.into())));
                }
                Gpt2 => steps.extend(PreTokenizerStep::gpt2()?),
                Bytes => steps.push(PreTokenizerStep::Bytes),
            }
        }
        Ok(steps.into())
    }
}
