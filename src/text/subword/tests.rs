//! Against the models of the tokenizers crate.

use std::ops::Range;

use proptest::{collection::vec, prelude::*};
use tokenizers::{
    Model, ModelWrapper, Result,
    models::{
        bpe::{BPE, Vocab},
        unigram::Unigram,
    },
};

use super::{SubwordModel, bpe, unigram::UnigramSplitter};
use crate::text::budget::{TokenizeBudget, at_once};

type Tokens = Vec<(u32, Range<usize>)>;

fn theirs(model: &impl Model, word: &str) -> Result<Tokens> {
    let tokens = model.tokenize(word)?;
    Ok(tokens.into_iter().map(|token| (token.id, token.offsets.0..token.offsets.1)).collect())
}

fn of_bpe(model: &BPE, word: &str) -> Result<Tokens> {
    let (mut tokens, mut budget) = (Vec::new(), TokenizeBudget::unlimited());
    let merges = at_once(bpe::merges(model, &mut budget)).unwrap()?;
    at_once(bpe::tokenize(model, &merges, word, &mut budget, |id, range| tokens.push((id, range)))).unwrap()?;
    Ok(tokens)
}

fn of_unigram(model: &Unigram, word: &str) -> Result<Tokens> {
    let (mut tokens, mut budget) = (Vec::new(), TokenizeBudget::unlimited());
    let splitter = UnigramSplitter::new(model)?;
    at_once(splitter.tokenize(word, &mut budget, |id, range| tokens.push((id, range)))).unwrap()?;
    Ok(tokens)
}

/// A byte pair encoding whose merges are drawn: each joins two tokens that there are by then.
fn bpe_of(
    letters: &[char],
    merges: &[(usize, usize)],
    (unknown, fuse_unk, bytes): (bool, bool, Option<bool>),
    ignore_merges: bool,
    (prefix, suffix): (bool, bool),
) -> BPE {
    let (before, after) = (if prefix { "##" } else { "" }, if suffix { "</w>" } else { "" });
    let mut tokens: Vec<String> = Vec::new();
    let add = |tokens: &mut Vec<String>, token: String| {
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    };
    for letter in letters {
        for token in [format!("{letter}"), format!("{before}{letter}"), format!("{letter}{after}")] {
            add(&mut tokens, token);
        }
        add(&mut tokens, format!("{before}{letter}{after}"));
    }
    let mut pairs = Vec::new();
    for (left, right) in merges {
        let (left, right) = (tokens[left % tokens.len()].clone(), tokens[right % tokens.len()].clone());
        if let Some(rest) = right.strip_prefix(before) {
            add(&mut tokens, format!("{left}{rest}"));
            pairs.push((left, right));
        }
    }
    let names = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    // Of the letters that may be missing, not all have all of their bytes.
    let names = names.skip(if bytes == Some(true) { 0 } else { 0xc4 });
    tokens.extend(names.filter(|_| bytes.is_some()));
    tokens.push("<unk>".to_owned());
    let vocab: Vocab = tokens.into_iter().zip(0..).collect();
    let mut builder = BPE::builder().vocab_and_merges(vocab, pairs).fuse_unk(fuse_unk).byte_fallback(bytes.is_some());
    builder = builder.ignore_merges(ignore_merges);
    if unknown {
        builder = builder.unk_token("<unk>".to_owned());
    }
    if prefix {
        builder = builder.continuing_subword_prefix(before.to_owned());
    }
    if suffix {
        builder = builder.end_of_word_suffix(after.to_owned());
    }
    builder.build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn bpe_matches_the_tokenizers_crate(
        letters in prop::sample::subsequence(vec!['a', 'b', 'c', 'é', '▁', '語'], 1..=6),
        merges in vec((any::<usize>(), any::<usize>()), 0..24),
        unknowns in (any::<bool>(), any::<bool>(), any::<Option<bool>>()),
        ignore_merges: bool,
        around in (any::<bool>(), any::<bool>()),
        words in vec("[abcdé▁語ö]{1,40}|a{1,80}|(ab){1,40}", 1..4),
    ) {
        let model = bpe_of(&letters, &merges, unknowns, ignore_merges, around);
        for word in words {
            prop_assert_eq!(of_bpe(&model, &word).unwrap(), theirs(&model, &word).unwrap(), "{:?}", word);
        }
    }

    #[test]
    fn unigram_matches_the_tokenizers_crate(
        tokens in vec(("[abé▁]{1,6}|ö|öö|<unk>|<0x[0-9A-F]{2}>", -12i32..4), 1..24),
        unknown: Option<prop::sample::Index>,
        bytes: Option<bool>,
        words in vec("[abcé▁ö]{1,60}|a{1,80}|[cö]{1,8}", 1..4),
    ) {
        let mut vocab: Vec<_> = tokens.into_iter().map(|(token, score)| (token, f64::from(score) * 0.7)).collect();
        let unknown = unknown.map(|at| at.index(vocab.len()));
        if let Some(all) = bytes {
            vocab.extend((if all { 0 } else { 0xc4 }..=0xff).map(|byte| (format!("<0x{byte:02X}>"), -20.0)));
        }
        let model = Unigram::from(vocab, unknown, bytes.is_some()).unwrap();
        for word in words {
            match (of_unigram(&model, &word), theirs(&model, &word)) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs, "{:?}", word),
                (Err(_), Err(_)) => {}
                (ours, theirs) => prop_assert!(false, "{:?}: {:?}, not {:?}", word, ours, theirs),
            }
        }
    }
}

/// Whether a word is tokenized in many short turns, whatever they add up to.
fn turns(model: ModelWrapper, word: &str) -> (usize, Tokens) {
    let subwords = SubwordModel::default();
    let mut budget = TokenizeBudget::cooperative(usize::MAX, usize::MAX);
    let mut tokens = Vec::new();
    let mut work = Box::pin(subwords.tokenize(&model, word, &mut budget, |id, range| tokens.push((id, range))));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let (mut count, mut longest) = (0, std::time::Duration::ZERO);
    loop {
        let begun = std::time::Instant::now();
        let polled = work.as_mut().poll(&mut context);
        // The first turn builds the tables.
        longest = longest.max(if count == 0 { std::time::Duration::ZERO } else { begun.elapsed() });
        count += 1;
        if let std::task::Poll::Ready(done) = polled {
            done.unwrap();
            break;
        }
    }
    drop(work);
    assert!(longest.as_millis() < 200, "{longest:?} at a stretch");
    (count, tokens)
}

#[test]
fn endless_words_yield() {
    let word = "a".repeat(1 << 20);
    let model = bpe_of(&['a', 'b'], &[(0, 0), (8, 8)], (false, false, None), false, (false, false));
    let (count, tokens) = turns(model.clone().into(), &word);
    assert!(count > 10, "{count} turns");
    assert_eq!(tokens, theirs(&model, &word).unwrap());
    let unknown = "ü".repeat(1 << 20);
    let pieces = ["<unk>", "a", "aa", "aaaa"].map(|piece| (piece.to_owned(), -1.0));
    let model = Unigram::from(pieces.to_vec(), Some(0), false).unwrap();
    for word in [word, unknown] {
        let (count, tokens) = turns(model.clone().into(), &word);
        assert!(count > 10, "{count} turns");
        assert_eq!(tokens, theirs(&model, &word).unwrap());
    }
}
