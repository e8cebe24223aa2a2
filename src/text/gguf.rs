//! The tokenizer of a GGUF file.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, BpeBuilder, Merges, Vocab},
    normalizers::{NFC, Prepend, Replace, Sequence as Normalizers},
};

use super::{
    Tokenizer, added_token_finder, control_names, gguf_pre_tokenizer::GgufPreTokenizer, lenient::ignore_invalid,
    normalizer::Normalizer, token_decoder::TokenDecoder, tokenizer::surrounded, tokenizer_json::TokenizerSteps,
};
use crate::{
    Error, Result,
    weights::gguf::{GgufArray, GgufMetadata},
};

/// Values of `tokenizer.ggml.token_type`.
mod token_type {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const BYTE: i64 = 6;
}

/// Tokens that a vocabulary may have, and bytes of all of them. Real ones have a quarter of a million, of two
/// megabytes.
const MAX_TOKENS: usize = 1 << 21;
const MAX_TOKEN_BYTES: usize = 32 << 20;
/// No longer token is made of others: there are as many ways to split one as it has characters.
const MAX_SPLIT_BYTES: usize = 1024;
/// Bytes that may be looked at to find the pairs of tokens that make others.
const MAX_SPLIT_WORK: usize = 1 << 31;
/// Pairs of tokens that may make others, and memory for them. Real vocabularies need an eighth of it.
const MAX_MERGES: usize = 4 << 20;
const MAX_MERGES_BYTES: usize = 256 << 20;

/// Builds the tokenizer.
pub fn tokenizer(path: &Path, metadata: &GgufMetadata) -> Result<Tokenizer> {
    let key = "tokenizer.ggml.model";
    let mut vocabulary = GgufVocabulary::read(metadata)?;
    let (mut inner, steps, around) = match metadata.opt_str(key)?.ok_or_else(|| metadata.missing(key))? {
        "gpt2" => byte_level(path, metadata, &mut vocabulary)?,
        "llama" => {
            let merges = merges_by_score(metadata, &vocabulary)?;
            sentence_piece(path, metadata, &mut vocabulary, merges)?
        }
        "gemma4" => {
            let merges = merges(metadata, &vocabulary)?;
            sentence_piece(path, metadata, &mut vocabulary, merges)?
        }
        other => {
            let why = format!("{other:?} is not a tokenizer of this version: gpt2, llama, gemma4");
            return Err(metadata.bad(key, &why));
        }
    };
    if let Some(processor) = surroundings(path, metadata, &vocabulary, around)? {
        inner.with_post_processor(Some(processor));
    }
    add_tokens(metadata, &vocabulary, &mut inner).map_err(|error| bad_vocabulary(path, error))?;
    match steps {
        Some(steps) => Tokenizer::with_steps(path, inner, steps),
        None => Tokenizer::new(path, inner),
    }
}

/// The ids that end an answer.
pub fn end_ids(metadata: &GgufMetadata, tokenizer: &Tokenizer) -> Vec<u32> {
    let id_of_key = |key: &str| {
        let id = ignore_invalid(metadata.opt_u32(key))?;
        if tokenizer.token_of(id).is_none() {
            tracing::warn!("{}", metadata.bad(key, &format!("{id} is not in the vocabulary: it is ignored")));
            return None;
        }
        Some(id)
    };
    let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let mut ids: Vec<u32> = keys.into_iter().filter_map(id_of_key).collect();
    let special = |token: &str| tokenizer.id_of(token).filter(|id| tokenizer.is_special(*id));
    ids.extend(control_names::ENDS.into_iter().filter_map(special));
    for (key, names) in control_names::FILL_ENDS {
        match id_of_key(key) {
            Some(id) => ids.push(id),
            None => ids.extend(names.iter().copied().filter_map(special)),
        }
    }
    for token in control_names::not_an_end(|token| special(token).is_some()) {
        ids.retain(|id| tokenizer.id_of(token) != Some(*id));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The tokens, all different, and their types.
struct GgufVocabulary<'a> {
    tokens: &'a [String],
    ids: Vocab,
    types: &'a [i64],
    /// Names of control tokens that are none here.
    text: Vec<&'static str>,
}

impl<'a> GgufVocabulary<'a> {
    fn read(metadata: &'a GgufMetadata) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.strings(key)?;
        let bytes = tokens.iter().map(String::len).sum::<usize>();
        if tokens.len() > MAX_TOKENS || bytes > MAX_TOKEN_BYTES {
            return Err(metadata.bad(key, &format!("has {} tokens of {bytes} bytes, too many to hold", tokens.len())));
        }
        let mut ids = Vocab::with_capacity(tokens.len());
        for (token, id) in tokens.iter().zip(0..) {
            // Files fill gaps with empty ones.
            let name = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            if let Some(first) = ids.insert(name, id) {
                return Err(metadata.bad(key, &format!("{token:?} is there twice, as {first} and {id}")));
            }
        }
        let key = "tokenizer.ggml.token_type";
        let types: &[i64] = match metadata.opt_array(key)? {
            None => &[],
            Some(GgufArray::Ints(types)) if types.len() >= tokens.len() => types,
            Some(_) => return Err(metadata.bad(key, &format!("is not an array of {} whole numbers", tokens.len()))),
        };
        let text = if ids.contains_key(control_names::GEMMA4_TOOL_RESPONSE) { vec!["</s>"] } else { Vec::new() };
        Ok(Self { tokens, ids, types, text })
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(token_type::NORMAL)
    }

    /// Whether a token is a control token, by its type or its name.
    fn is_control(&self, id: usize) -> bool {
        let name = self.tokens[id].as_str();
        matches!(self.kind(id), token_type::UNKNOWN | token_type::CONTROL)
            || (control_names::is_control(name) && !self.text.contains(&name))
    }

    /// The token whose id a key has, or the default id where there is none that is in the vocabulary.
    fn token(&self, metadata: &GgufMetadata, key: &str, default: Option<u32>) -> Option<(String, u32)> {
        let token = |id: u32| self.tokens.get(id as usize).map(|token| (token.clone(), id));
        let id = ignore_invalid(metadata.opt_u32(key));
        if let Some(id) = id.filter(|id| token(*id).is_none()) {
            let why = format!("{id} is not in the vocabulary of {} tokens: it is ignored", self.tokens.len());
            tracing::warn!("{}", metadata.bad(key, &why));
        }
        id.and_then(token).or_else(|| token(default?))
    }
}

/// The special tokens around every text, unless the file says otherwise.
#[derive(Default)]
struct SurroundingTokens {
    adds_bos: bool,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// A tokenizer, its steps if they are not its own, and the special tokens around texts.
type BuiltTokenizer = (tokenizers::Tokenizer, Option<TokenizerSteps>, SurroundingTokens);

fn byte_level(path: &Path, metadata: &GgufMetadata, vocabulary: &mut GgufVocabulary<'_>) -> Result<BuiltTokenizer> {
    let key = "tokenizer.ggml.pre";
    let kind = metadata.opt_str(key)?.unwrap_or("default");
    let words = GgufPreTokenizer::of(kind)
        .ok_or_else(|| metadata.bad(key, &format!("{kind:?} is not a pre-tokenizer of this version")))?;
    let bpe = BPE::builder().ignore_merges(words.whole);
    let merges = merges(metadata, vocabulary)?;
    let mut inner = build(metadata, bpe, vocabulary, merges)?;
    if words.nfc {
        inner.with_normalizer(Some(NFC)).map_err(|error| bad_vocabulary(path, error))?;
    }
    let normalizer = if words.nfc { json!({"type": "NFC"}) } else { Value::Null };
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let steps = TokenizerSteps {
        normalizer: Normalizer::read(&normalizer).map_err(|error| bad_vocabulary(path, error))?,
        pre_tokenizer: words.steps().map_err(|error| metadata.bad(key, &error.to_string()))?,
        decoder: TokenDecoder::read(&decoder).map_err(|error| bad_vocabulary(path, error))?,
    };
    Ok((inner, Some(steps), SurroundingTokens { adds_bos: words.adds_bos, ..SurroundingTokens::default() }))
}

/// The tokenizer takes the vocabulary's ids, so that large ones need not be copied.
fn build(
    metadata: &GgufMetadata,
    bpe: BpeBuilder,
    vocabulary: &mut GgufVocabulary<'_>,
    merges: Merges,
) -> Result<tokenizers::Tokenizer> {
    let bpe = bpe.vocab_and_merges(std::mem::take(&mut vocabulary.ids), merges).build();
    Ok(tokenizers::Tokenizer::new(bpe.map_err(|error| metadata.bad("tokenizer.ggml.merges", &error.to_string()))?))
}

/// The merges that the file lists.
fn merges(metadata: &GgufMetadata, vocabulary: &GgufVocabulary<'_>) -> Result<Merges> {
    let key = "tokenizer.ggml.merges";
    let longest = vocabulary.tokens.iter().map(String::len).max().unwrap_or(0);
    let merges = metadata.strings(key)?.iter().map(|merge| match merge.split_once(' ') {
        // The builder checks all but this, for which it panics.
        Some((left, right)) if left.len() + right.len() <= longest => Ok((left.to_owned(), right.to_owned())),
        Some(_) => Err(metadata.bad(key, &format!("what {merge:?} makes is not in the vocabulary"))),
        None => Err(metadata.bad(key, &format!("{merge:?} is not a pair"))),
    });
    merges.collect()
}

/// SentencePiece's merges: any two neighbors that make a token, in the order of its score.
fn merges_by_score(metadata: &GgufMetadata, vocabulary: &GgufVocabulary<'_>) -> Result<Merges> {
    let key = "tokenizer.ggml.scores";
    let GgufVocabulary { tokens, ids, .. } = vocabulary;
    let whole_numbers: Vec<f64>;
    let scores = match metadata.opt_array(key)? {
        Some(GgufArray::Floats(scores)) if scores.len() >= tokens.len() => scores,
        Some(GgufArray::Ints(scores)) if scores.len() >= tokens.len() => {
            whole_numbers = scores.iter().map(|score| *score as f64).collect();
            &whole_numbers
        }
        _ => return Err(metadata.bad(key, &format!("is not an array of {} numbers", tokens.len()))),
    };
    let too_many = |count: usize| {
        let why = format!("{count} pairs of tokens make others, too many to hold");
        metadata.bad("tokenizer.ggml.tokens", &why)
    };
    let is_split = |id: usize| {
        let whole = vocabulary.is_control(id) || vocabulary.kind(id) == token_type::BYTE;
        !whole && tokens[id].len() <= MAX_SPLIT_BYTES
    };
    let split = (0..tokens.len()).into_par_iter().filter(|id| is_split(*id));
    if split.map(|id| tokens[id].len().pow(2)).sum::<usize>() > MAX_SPLIT_WORK {
        return Err(metadata.bad("tokenizer.ggml.tokens", "are too long to look for pairs that make others"));
    }
    let count = AtomicUsize::new(0);
    let pairs = |(id, token): (usize, &'_ String)| {
        let mut pairs = Vec::new();
        if is_split(id) && count.load(Ordering::Relaxed) <= MAX_MERGES {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let Some(left) = ids.get(left)
                    && let Some(right) = ids.get(right)
                {
                    pairs.push((scores[id], *left, *right));
                }
            }
        }
        count.fetch_add(pairs.len(), Ordering::Relaxed);
        pairs
    };
    let mut merges: Vec<_> = tokens.par_iter().enumerate().flat_map_iter(pairs).collect();
    merges.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let token = |id: u32| tokens[id as usize].clone();
    let bytes = |(_, left, right): &(f64, u32, u32)| {
        size_of::<(String, String)>() + tokens[*left as usize].len() + tokens[*right as usize].len()
    };
    if merges.len() > MAX_MERGES || merges.par_iter().map(bytes).sum::<usize>() > MAX_MERGES_BYTES {
        return Err(too_many(merges.len()));
    }
    Ok(merges.into_par_iter().map(|(_, left, right)| (token(left), token(right))).collect())
}

/// A SentencePiece model: BPE of characters with "▁" for spaces and byte fallback.
fn sentence_piece(
    path: &Path,
    metadata: &GgufMetadata,
    vocabulary: &mut GgufVocabulary<'_>,
    merges: Merges,
) -> Result<BuiltTokenizer> {
    let spm = metadata.opt_str("tokenizer.ggml.model")? == Some("llama");
    // The ids that Llama's files leave out.
    let default = |id| spm.then_some(id);
    let mut bpe = BPE::builder().byte_fallback(true).fuse_unk(true);
    if let Some((unknown, _)) = vocabulary.token(metadata, "tokenizer.ggml.unknown_token_id", default(0)) {
        bpe = bpe.unk_token(unknown);
    }
    let mut inner = build(metadata, bpe, vocabulary, merges)?;
    let prefix = ignore_invalid(metadata.opt_bool("tokenizer.ggml.add_space_prefix")).unwrap_or(spm);
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
    Ok((inner, None, SurroundingTokens { adds_bos: true, bos: default(1), eos: default(2) }))
}

/// Adds control tokens as special tokens, and user-defined ones as plain tokens.
fn add_tokens(
    metadata: &GgufMetadata,
    vocabulary: &GgufVocabulary<'_>,
    inner: &mut tokenizers::Tokenizer,
) -> tokenizers::Result<()> {
    // Phi-3's tokens take the space after them along, of which its files say nothing.
    let phi3 = ignore_invalid(metadata.opt_str("general.architecture")) == Some("phi3")
        && ignore_invalid(metadata.opt_str("tokenizer.ggml.model")) == Some("llama");
    let strips = |token: &str| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
    let (mut special, mut plain) = (Vec::new(), Vec::new());
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        let added = |special| AddedToken::from(token.clone(), special).normalized(false).rstrip(strips(token));
        if vocabulary.is_control(id) {
            special.push(added(true));
        } else if vocabulary.kind(id) == token_type::USER_DEFINED || control_names::WHOLE.contains(&token.as_str()) {
            plain.push(added(false));
        }
    }
    added_token_finder::check(special.iter().chain(&plain).map(|token| &*token.content))?;
    inner.add_special_tokens(special)?;
    inner.add_tokens(plain)?;
    Ok(())
}

/// The post-processor that puts BOS and EOS around every text.
fn surroundings(
    path: &Path,
    metadata: &GgufMetadata,
    vocabulary: &GgufVocabulary<'_>,
    around: SurroundingTokens,
) -> Result<Option<PostProcessorWrapper>> {
    let token = |adds: bool, key: &str, default| vocabulary.token(metadata, key, default).filter(|_| adds);
    let adds_bos = ignore_invalid(metadata.opt_bool("tokenizer.ggml.add_bos_token")).unwrap_or(around.adds_bos);
    let adds_eos = ignore_invalid(metadata.opt_bool("tokenizer.ggml.add_eos_token")).unwrap_or(false);
    let bos = token(adds_bos, "tokenizer.ggml.bos_token_id", around.bos);
    let eos = token(adds_eos, "tokenizer.ggml.eos_token_id", around.eos);
    surrounded(bos, eos).map_err(|error| bad_vocabulary(path, error))
}

fn bad_vocabulary(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::model_because(path, "tokenizer.ggml.tokens: has a bad vocabulary", error)
}
