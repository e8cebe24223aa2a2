//! Added tokens, which are found in a text before it is split into words.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex::Regex;
use tokenizers::AddedToken;

use super::{normalizer::Normalizer, pattern::BoxError};

/// Bytes a token may have: the automaton that finds it takes many times as much.
const MAX_BYTES: usize = 16 << 10;
/// Bytes that all of them may have.
const MAX_TOTAL_BYTES: usize = 4 << 20;
/// Tokens that there may be. Speech models add up to 70,000.
const MAX_TOKENS: usize = 1 << 18;
/// Bytes of tokens up to which the fastest automaton is built: it takes a kilobyte for each.
const SMALL_BYTES: usize = 8 << 10;

static WORD_END: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\w").ok());

/// Added tokens that are looked for in one kind of text.
#[derive(Default)]
pub struct AddedTokenFinder {
    finder: Option<AhoCorasick>,
    tokens: Vec<(u32, AddedToken)>,
}

/// A part of a text: an added token, or the text between two.
#[derive(Debug, PartialEq, Eq)]
pub struct AddedTokenSplit<'t> {
    pub text: &'t str,
    pub id: Option<u32>,
    pub starts_at: usize,
}

impl<'t> AddedTokenSplit<'t> {
    /// The text, if it is between tokens.
    pub fn between(&self) -> Option<&'t str> {
        if self.id.is_none() { Some(self.text) } else { None }
    }
}

/// Refuses texts of tokens that would take too much memory.
pub fn check<'t>(texts: impl Iterator<Item = &'t str>) -> Result<(), BoxError> {
    let (mut total, mut count) = (0usize, 0usize);
    for text in texts {
        count += 1;
        if text.len() > MAX_BYTES {
            let begin: String = text.chars().take(20).collect();
            return Err(format!("the token {begin:?}… has {} bytes, more than {MAX_BYTES}", text.len()).into());
        }
        total += text.len();
    }
    if count > MAX_TOKENS {
        return Err(format!("there are {count} added tokens, more than {MAX_TOKENS}").into());
    }
    if total > MAX_TOTAL_BYTES {
        return Err(format!("the added tokens have {total} bytes, more than {MAX_TOTAL_BYTES}").into());
    }
    Ok(())
}

impl AddedTokenFinder {
    /// A finder of the tokens that are matched in raw text, or in normalized text if there is a normalizer.
    pub fn new(tokens: &[(u32, AddedToken)], normalizer: Option<&Normalizer>) -> Result<Self, BoxError> {
        let wanted = tokens.iter().filter(|(_, token)| token.normalized == normalizer.is_some());
        let mut texts = Vec::new();
        let mut found = Vec::new();
        for (id, token) in wanted {
            let text = match normalizer {
                Some(normalizer) => normalizer.normalize_now(&token.content)?,
                None => token.content.clone(),
            };
            if !text.is_empty() {
                texts.push(text);
                found.push((*id, token.clone()));
            }
        }
        if texts.is_empty() {
            return Ok(Self::default());
        }
        check(texts.iter().map(String::as_str))?;
        let mut finder = AhoCorasick::builder();
        finder.match_kind(MatchKind::LeftmostLongest);
        if texts.iter().map(String::len).sum::<usize>() > SMALL_BYTES {
            finder.kind(Some(AhoCorasickKind::ContiguousNFA));
        }
        let finder = finder.build(&texts)?;
        Ok(Self { finder: Some(finder), tokens: found })
    }

    /// The parts of a text. Tokens that are text by `is_plain` are left in the others.
    pub fn parts<'a>(
        &'a self,
        text: &'a str,
        is_plain: impl Fn(u32) -> bool,
    ) -> impl Iterator<Item = AddedTokenSplit<'a>> {
        let matches = self.finder.iter().flat_map(move |finder| finder.find_iter(text));
        let (mut at, mut spaces) = (0, 0..0);
        let found = matches.filter_map(move |found| {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if is_plain(*id) || token.single_word && !is_word(text, start, end) {
                return None;
            }
            if token.lstrip {
                start = at.max(at.min(start) + text[at.min(start)..start].trim_end().len());
            }
            if token.rstrip {
                if !(spaces.start..=spaces.end).contains(&end) || spaces.is_empty() {
                    spaces = end..text.len() - text[end..].trim_start().len();
                }
                end = spaces.end;
            }
            let before = AddedTokenSplit { text: text.get(at..start).unwrap_or_default(), id: None, starts_at: at };
            at = end;
            let part =
                AddedTokenSplit { text: text.get(start..end).unwrap_or_default(), id: Some(*id), starts_at: start };
            Some((before, part, end))
        });
        // The text behind the last token comes at the end.
        let mut found = found.fuse();
        let (mut next, mut last) = (None, Some(0));
        std::iter::from_fn(move || {
            if let Some(part) = next.take() {
                return Some(part);
            }
            if let Some((before, part, end)) = found.next() {
                last = Some(end);
                next = Some(part);
                return Some(before);
            }
            let from = last.take()?;
            Some(AddedTokenSplit { text: &text[from..], id: None, starts_at: from })
        })
        .filter(|part| part.id.is_some() || !part.text.is_empty())
    }
}

/// Whether no letter is beside a part of a text.
fn is_word(text: &str, start: usize, end: usize) -> bool {
    let is_letter = |c: Option<char>| {
        let matches = |c: char| WORD_END.as_ref().is_some_and(|regex| regex.is_match(c.encode_utf8(&mut [0; 4])));
        c.is_some_and(matches)
    };
    !is_letter(text[..start].chars().next_back()) && !is_letter(text[end..].chars().next())
}
