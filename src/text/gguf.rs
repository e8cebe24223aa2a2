//! The tokenizer that a GGUF file carries.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{NFC, Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
    processors::{sequence::Sequence as Processors, template::TemplateProcessing},
};

use super::Tokenizer;
use crate::{
    Error, Result,
    weights::gguf::{Array, Metadata},
};

/// What `tokenizer.ggml.token_type` says of a token.
mod token_type {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const BYTE: i64 = 6;
}

/// Names of control tokens that end an answer even where no key says so.
const END_TOKENS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// How text is cut into words before merging.
#[derive(Clone, Copy)]
struct Words {
    /// Regular expressions applied one after the other, before GPT-2's own if `gpt2` is set.
    patterns: &'static [&'static str],
    gpt2: bool,
    nfc: bool,
    /// Whether a word that is a token is taken whole.
    whole: bool,
    /// Whether texts begin with a BOS token, where no key says so.
    bos: bool,
}

const GPT2: Words = Words { patterns: &[], gpt2: true, nfc: false, whole: false, bos: false };
const DIGITS: Words = Words { patterns: &[r"\p{N}"], ..GPT2 };
const SPLIT: Words = Words { gpt2: false, ..GPT2 };

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILINGMOE: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

impl Words {
    /// That of a `tokenizer.ggml.pre`.
    fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "default" | "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "exaone4" | "trillion" | "gigachat"
            | "a.x-4.0" | "mellum" | "granite-docling" => GPT2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                DIGITS
            }
            "llama-bpe" | "llama-v3" | "llama3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
                Self { patterns: &[LLAMA3], whole: true, bos: true, ..SPLIT }
            }
            "smaug-bpe" | "dbrx" | "chatglm-bpe" => Self { patterns: &[LLAMA3], ..SPLIT },
            "glm4" | "glm5" => Self { patterns: &[LLAMA3], whole: true, ..SPLIT },
            "qwen2" | "deepseek-r1-qwen" | "megrez" | "kormo" => Self { patterns: &[QWEN2], nfc: true, ..SPLIT },
            "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => Self { patterns: &[QWEN2], ..SPLIT },
            "qwen35" => Self { patterns: &[QWEN35], nfc: true, ..SPLIT },
            "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => Self { patterns: &[GPT4O], ..SPLIT },
            "tekken" => Self { patterns: &[TEKKEN], whole: true, ..SPLIT },
            "seed-coder" => Self { patterns: &[SEED_CODER], ..SPLIT },
            "bailingmoe" | "bailingmoe2" | "llada-moe" => Self { patterns: &[BAILINGMOE], ..SPLIT },
            "deepseek-coder" => {
                let patterns = &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
                Self { patterns, ..SPLIT }
            }
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
                Self { patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3], ..SPLIT }
            }
            "bloom" | "poro-chat" | "gpt3-finnish" => Self { patterns: &[BLOOM], ..SPLIT },
            "viking" => Self { patterns: &[BLOOM, r"\p{N}"], ..SPLIT },
            _ => return None,
        })
    }
}

/// Builds the tokenizer.
pub fn tokenizer(path: &Path, metadata: &Metadata) -> Result<Tokenizer> {
    let key = "tokenizer.ggml.model";
    let (mut inner, adds_bos) = match metadata.opt_str(key)?.ok_or_else(|| metadata.missing(key))? {
        "gpt2" => {
            let key = "tokenizer.ggml.pre";
            let kind = metadata.opt_str(key)?.unwrap_or("default");
            let words = Words::of(kind)
                .ok_or_else(|| metadata.bad(key, &format!("{kind:?} is not a pre-tokenizer of this version")))?;
            (byte_level(path, metadata, words)?, words.bos)
        }
        "llama" => sentence_piece(path, metadata)?,
        other => return Err(metadata.bad(key, &format!("{other:?} is not a tokenizer of this version: gpt2, llama"))),
    };
    if let Some(processor) = surroundings(path, metadata, adds_bos)? {
        inner.with_post_processor(Some(processor));
    }
    add_tokens(metadata, &mut inner).map_err(|error| Error::model_because(path, "has a bad vocabulary", error))?;
    Ok(Tokenizer::new(path, inner))
}

/// The ids that end an answer.
pub fn end_ids(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ids.extend(metadata.opt_u32(key)?);
    }
    ids.extend(END_TOKENS.iter().filter_map(|token| tokenizer.id_of(token)).filter(|id| tokenizer.is_special(*id)));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn byte_level(path: &Path, metadata: &Metadata, words: Words) -> Result<tokenizers::Tokenizer> {
    let merges = metadata.strings("tokenizer.ggml.merges")?.iter().map(|merge| {
        let pair = merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        pair.ok_or_else(|| metadata.bad("tokenizer.ggml.merges", &format!("{merge:?} is not a pair")))
    });
    let merges = merges.collect::<Result<Merges>>()?;
    let bpe = BPE::builder().vocab_and_merges(vocab(metadata)?, merges).ignore_merges(words.whole);
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(|error| bad_vocabulary(path, error))?);
    if words.nfc {
        inner.with_normalizer(Some(NFC)).map_err(|error| bad_vocabulary(path, error))?;
    }
    let mut steps = Vec::<PreTokenizerWrapper>::new();
    for pattern in words.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(|error| bad_vocabulary(path, error))?.into());
    }
    steps.push(ByteLevel::new(false, false, words.gpt2).into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(inner)
}

/// A SentencePiece model: two neighbours merge in the order of the score of what they make.
fn sentence_piece(path: &Path, metadata: &Metadata) -> Result<(tokenizers::Tokenizer, bool)> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let vocab = vocab(metadata)?;
    let key = "tokenizer.ggml.scores";
    let scores = match metadata.opt_array(key)? {
        Some(Array::Floats(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err(metadata.bad(key, &format!("is not an array of {} numbers", tokens.len()))),
    };
    let types = types(metadata)?;
    // A vocabulary of a quarter of a million tokens has twice as many ways to make one of two.
    let made_of = |(id, token): (usize, &String)| {
        let kind = types.get(id).copied().unwrap_or(1);
        let whole = matches!(kind, token_type::UNKNOWN | token_type::CONTROL | token_type::BYTE);
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at)).filter(|_| !whole);
        let known = splits.filter_map(|(left, right)| Some((*vocab.get(left)?, *vocab.get(right)?)));
        known.map(|pair| (scores[id], pair)).collect::<Vec<_>>()
    };
    let mut merges: Vec<(f64, (u32, u32))> = tokens.par_iter().enumerate().flat_map_iter(made_of).collect();
    merges.par_sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let text = |id: u32| tokens[id as usize].clone();
    let merges: Merges = merges.into_iter().map(|(_, (left, right))| (text(left), text(right))).collect();
    let unknown = metadata.opt_usize("tokenizer.ggml.unknown_token_id")?.and_then(|id| tokens.get(id));
    let mut bpe = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        bpe = bpe.unk_token(unknown.clone());
    }
    let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(|error| bad_vocabulary(path, error))?);
    let prefix = metadata.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = |from: &str, to: &str| Replace::new(from, to).map_err(|error| bad_vocabulary(path, error));
    let mut normalizers = Vec::<NormalizerWrapper>::new();
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace("▁", " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        normalizers.push(Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(replace(" ", "▁")?.into());
    inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(|error| bad_vocabulary(path, error))?;
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok((inner, true))
}

fn vocab(metadata: &Metadata) -> Result<Vocab> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    Ok(tokens.iter().zip(0..).map(|(token, id)| (token.clone(), id)).collect())
}

fn types(metadata: &Metadata) -> Result<&[i64]> {
    let key = "tokenizer.ggml.token_type";
    match metadata.opt_array(key)? {
        None => Ok(&[]),
        Some(Array::Ints(types)) => Ok(types),
        Some(_) => Err(metadata.bad(key, "is not an array of whole numbers")),
    }
}

/// Control tokens are special; those the model's makers added as text are not.
fn add_tokens(metadata: &Metadata, inner: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let (mut special, mut plain) = (Vec::new(), Vec::new());
    for (token, kind) in tokens.iter().zip(types(metadata)?) {
        match *kind {
            token_type::CONTROL | token_type::UNKNOWN => special.push(AddedToken::from(token.clone(), true)),
            token_type::USER_DEFINED => plain.push(AddedToken::from(token.clone(), false).normalized(false)),
            _ => {}
        }
    }
    inner.add_special_tokens(special)?;
    inner.add_tokens(plain)?;
    Ok(())
}

/// What the tokenizer puts around every text.
fn surroundings(path: &Path, metadata: &Metadata, adds_bos: bool) -> Result<Option<PostProcessorWrapper>> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let token = |adds: bool, key: &str| -> Result<Option<(String, u32)>> {
        let Some(id) = metadata.opt_u32(key)?.filter(|_| adds) else { return Ok(None) };
        let token =
            tokens.get(id as usize).ok_or_else(|| metadata.bad(key, &format!("{id} is not in the vocabulary")))?;
        Ok(Some((token.clone(), id)))
    };
    let adds_bos = metadata.opt_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
    let adds_eos = metadata.opt_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let bos = token(adds_bos, "tokenizer.ggml.bos_token_id")?;
    let eos = token(adds_eos, "tokenizer.ggml.eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let name = |token: &Option<(String, u32)>| token.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
    let single = [name(&bos), vec!["$A".to_owned()], name(&eos)].concat();
    let template = TemplateProcessing::builder()
        .try_single(single)
        .map_err(|error| bad_vocabulary(path, error))?
        .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
        .build()
        .map_err(|error| bad_vocabulary(path, error))?;
    Ok(Some(Processors::new(vec![template.into()]).into()))
}

fn bad_vocabulary(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::model_because(path, "tokenizer.ggml.tokens: has a bad vocabulary", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::gguf::GgufFile;

    #[test]
    fn words_are_cut_as_llama_cpp_cuts_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_words");
        let path = folder.join("vocabulary.gguf");
        let metadata = GgufFile::open(&path).unwrap().metadata;
        let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
        let texts: Vec<&str> =
            expected["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        for (kind, ids) in expected["ids"].as_object().unwrap() {
            let words = Words::of(kind).unwrap_or_else(|| panic!("{kind}"));
            let tokenizer = byte_level(&path, &metadata, words).unwrap();
            for (text, ids) in texts.iter().zip(ids.as_array().unwrap()) {
                let ours = tokenizer.encode(*text, false).unwrap();
                let Some(ids) = ids.as_array() else { continue };
                let ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
                assert_eq!(ours.get_ids(), ids, "{kind}: {text:?}");
            }
        }
    }
}
