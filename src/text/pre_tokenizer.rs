//! The `pre_tokenizer` of a `tokenizer.json`: splits text into words, lazily, one at a time.

use std::{ops::Range, sync::Arc, vec};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::split::SplitPattern,
};

use super::{
    byte_level,
    pattern::{BoxError, Pattern, PatternMatches},
};

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The most bytes that steps of the tokenizers crate are given: it holds about sixty for each.
const MAX_FOREIGN_BYTES: usize = 16 << 20;

/// Each step cuts the pieces of the one before.
#[derive(Default)]
pub struct PreTokenizer(Vec<PreTokenizerStep>);

pub enum PreTokenizerStep {
    Split {
        pattern: Pattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// Puts a space before pieces without one.
    PrefixSpace,
    /// From here on text is bytes.
    Bytes,
    Metaspace(Metaspace),
    /// Any other step, run by the tokenizers crate.
    Foreign(Box<PreTokenizerWrapper>),
}

/// Spaces become another character, with which pieces begin.
pub struct Metaspace {
    replacement: char,
    prefix: PrependScheme,
    split: bool,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum PrependScheme {
    First,
    Never,
    Always,
}

impl PreTokenizerStep {
    /// Isolates every match of a pattern.
    pub fn isolated(pattern: Pattern) -> Self {
        Self::Split { pattern, behavior: SplitDelimiterBehavior::Isolated, invert: false }
    }

    /// GPT-2's words, and from there on bytes.
    pub fn gpt2() -> Result<[Self; 2], BoxError> {
        Ok([Self::isolated(Pattern::regex(GPT2)?), Self::Bytes])
    }
}

impl From<Vec<PreTokenizerStep>> for PreTokenizer {
    fn from(steps: Vec<PreTokenizerStep>) -> Self {
        Self(steps)
    }
}

impl PreTokenizer {
    /// Reads a `pre_tokenizer`.
    pub fn read(value: &Value) -> Result<Self, BoxError> {
        let mut steps = Vec::new();
        if !value.is_null() {
            read(value, &mut steps)?;
        }
        Ok(Self(steps))
    }

    /// Whether words are bytes, as GPT-2 writes them.
    pub fn ends_in_bytes(&self) -> bool {
        matches!(self.0.last(), Some(PreTokenizerStep::Bytes))
    }

    /// Whether nothing of a text is left out.
    pub fn keeps_all(&self) -> bool {
        self.0.iter().all(|step| match step {
            PreTokenizerStep::Split { behavior, .. } => *behavior != SplitDelimiterBehavior::Removed,
            PreTokenizerStep::Foreign(step) => matches!(**step, PreTokenizerWrapper::Punctuation(_)),
            PreTokenizerStep::PrefixSpace | PreTokenizerStep::Bytes | PreTokenizerStep::Metaspace(_) => true,
        })
    }

    /// The words of a text; `first` if the prompt begins with it. If [`ends_in_bytes`](Self::ends_in_bytes), the last
    /// step is the caller's.
    pub fn words(&self, text: &str, first: bool) -> WordIter<'_> {
        let steps = match self.0.split_last() {
            Some((PreTokenizerStep::Bytes, before)) => before,
            _ => &self.0,
        };
        let piece = TextSlice { range: 0..text.len(), text: text.into(), first };
        WordIter { steps, stack: Vec::new(), start: Some(piece) }
    }
}

fn read(value: &Value, steps: &mut Vec<PreTokenizerStep>) -> Result<(), BoxError> {
    if let Some(inner) = value.get("pretokenizers").and_then(Value::as_array) {
        return inner.iter().try_for_each(|value| read(value, steps));
    }
    match value["type"].as_str().unwrap_or_default() {
        "Split" => steps.push(split(value)?),
        "Digits" => {
            let each = value["individual_digits"].as_bool().ok_or("individual_digits is missing")?;
            steps.push(PreTokenizerStep::isolated(Pattern::numeric(each)));
        }
        "ByteLevel" => {
            let flag = |key: &str| value.get(key).and_then(Value::as_bool);
            if flag("add_prefix_space").ok_or("add_prefix_space is missing")? {
                steps.push(PreTokenizerStep::PrefixSpace);
            }
            match flag("use_regex").unwrap_or(true) {
                true => steps.extend(PreTokenizerStep::gpt2()?),
                false => steps.push(PreTokenizerStep::Bytes),
            }
        }
        "Metaspace" => steps.push(PreTokenizerStep::Metaspace(metaspace(value)?)),
        "FixedLength" if value["length"] == 0 => return Err("length is 0".into()),
        // No other step has patterns.
        _ => steps.push(PreTokenizerStep::Foreign(Box::new(serde_json::from_value(value.clone())?))),
    }
    Ok(())
}

fn split(value: &Value) -> Result<PreTokenizerStep, BoxError> {
    #[derive(Deserialize)]
    struct SplitFields {
        pattern: SplitPattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    }
    let SplitFields { pattern, behavior, invert } = SplitFields::deserialize(value)?;
    let pattern = match &pattern {
        SplitPattern::String(text) => Pattern::text(text)?,
        SplitPattern::Regex(pattern) => Pattern::regex(pattern)?,
    };
    Ok(PreTokenizerStep::Split { pattern, behavior, invert })
}

fn metaspace(value: &Value) -> Result<Metaspace, BoxError> {
    #[derive(Deserialize)]
    struct MetaspaceFields {
        replacement: char,
        add_prefix_space: Option<bool>,
        prepend_scheme: Option<PrependScheme>,
        split: Option<bool>,
    }
    let MetaspaceFields { replacement, add_prefix_space, prepend_scheme, split } = MetaspaceFields::deserialize(value)?;
    let prefix = match (add_prefix_space, prepend_scheme) {
        (Some(false), Some(PrependScheme::First | PrependScheme::Always)) => {
            return Err("add_prefix_space does not match prepend_scheme".into());
        }
        (Some(false), _) => PrependScheme::Never,
        (_, scheme) => scheme.unwrap_or(PrependScheme::Always),
    };
    Ok(Metaspace { replacement, prefix, split: split.unwrap_or(true) })
}

/// A part of a text.
pub struct TextSlice {
    text: Arc<str>,
    range: Range<usize>,
    /// Whether the prompt begins with it.
    first: bool,
}

impl TextSlice {
    pub fn text(&self) -> &str {
        &self.text[self.range.clone()]
    }

    fn part(&self, range: Range<usize>) -> Self {
        let (start, end) = (self.range.start + range.start, self.range.start + range.end);
        Self { text: self.text.clone(), range: start..end, first: self.first && range.start == 0 }
    }

    fn changed(&self, text: String) -> Self {
        Self { range: 0..text.len(), text: text.into(), first: self.first }
    }
}

/// The words of a text, in order.
pub struct WordIter<'s> {
    steps: &'s [PreTokenizerStep],
    /// The piece that each step is splitting, the last step on top.
    stack: Vec<PendingSplits<'s>>,
    /// The text, until it is begun.
    start: Option<TextSlice>,
}

/// A piece that a step is cutting.
enum PendingSplits<'s> {
    /// PatternSplits stand alone, or are left out.
    Lazy(PatternSplits<'s>),
    All(vec::IntoIter<TextSlice>),
}

struct PatternSplits<'s> {
    piece: TextSlice,
    scan: PatternMatches<'s>,
    /// How much has been given.
    at: usize,
    next: Option<Range<usize>>,
    /// Whether matches are returned, and whether the text between them is.
    gives: (bool, bool),
}

impl WordIter<'_> {
    /// The next word. None is empty.
    pub fn next(&mut self) -> Result<Option<TextSlice>, BoxError> {
        if let Some(text) = self.start.take().filter(|text| !text.text().is_empty()) {
            match self.steps.first() {
                Some(step) => self.stack.push(step.cut(text)?),
                None => return Ok(Some(text)),
            }
        }
        loop {
            let depth = self.stack.len();
            let Some(top) = self.stack.last_mut() else { return Ok(None) };
            let piece = match top {
                PendingSplits::Lazy(matches) => matches.next()?,
                PendingSplits::All(pieces) => pieces.next(),
            };
            match piece {
                None => drop(self.stack.pop()),
                Some(piece) if piece.text().is_empty() => {}
                Some(piece) => match self.steps.get(depth) {
                    Some(step) => self.stack.push(step.cut(piece)?),
                    None => return Ok(Some(piece)),
                },
            }
        }
    }
}

impl PatternSplits<'_> {
    fn next(&mut self) -> Result<Option<TextSlice>, BoxError> {
        let (matches, others) = self.gives;
        loop {
            if let Some(found) = self.next.take() {
                self.at = found.end;
                if matches {
                    return Ok(Some(self.piece.part(found)));
                }
            }
            let end = self.piece.text().len();
            if self.at == end {
                return Ok(None);
            }
            let found = self.scan.next(self.piece.text())?;
            let between = self.at..found.map_or(end, |(start, _)| start);
            self.at = between.end;
            self.next = found.map(|(start, end)| start..end);
            if others && !between.is_empty() {
                return Ok(Some(self.piece.part(between)));
            }
        }
    }
}

impl PreTokenizerStep {
    fn cut(&self, piece: TextSlice) -> Result<PendingSplits<'_>, BoxError> {
        use SplitDelimiterBehavior::{Isolated, Removed};
        let all = |pieces: Vec<TextSlice>| Ok(PendingSplits::All(pieces.into_iter()));
        match self {
            Self::Split { pattern, behavior: Isolated, .. } => Ok(lazily(pattern, piece, (true, true))),
            Self::Split { pattern, behavior: Removed, invert } => Ok(lazily(pattern, piece, (*invert, !invert))),
            Self::Split { pattern, behavior, invert } => {
                let parts = merged(parts(pattern, piece.text(), *invert)?, *behavior);
                all(parts.into_iter().map(|part| piece.part(part)).collect())
            }
            Self::PrefixSpace if piece.text().starts_with(' ') => all(vec![piece]),
            Self::PrefixSpace => all(vec![piece.changed(format!(" {}", piece.text()))]),
            Self::Bytes => all(vec![piece.changed(byte_level::written(piece.text()))]),
            Self::Metaspace(metaspace) => all(metaspace.cut(&piece)),
            Self::Foreign(step) => all(foreign(step, &piece)?),
        }
    }
}

fn lazily(pattern: &Pattern, piece: TextSlice, gives: (bool, bool)) -> PendingSplits<'_> {
    PendingSplits::Lazy(PatternSplits { piece, scan: pattern.scan(), at: 0, next: None, gives })
}

/// All parts of a text, and whether each is a match (or none, if `invert`).
fn parts(pattern: &Pattern, text: &str, invert: bool) -> Result<Vec<(Range<usize>, bool)>, BoxError> {
    let (mut parts, mut at, mut scan) = (Vec::new(), 0, pattern.scan());
    while let Some((start, end)) = scan.next(text)? {
        if at != start {
            parts.push((at..start, invert));
        }
        parts.push((start..end, !invert));
        at = end;
    }
    if at != text.len() {
        parts.push((at..text.len(), invert));
    }
    Ok(parts)
}

/// Joins matches with their neighbors.
fn merged(mut parts: Vec<(Range<usize>, bool)>, behavior: SplitDelimiterBehavior) -> Vec<Range<usize>> {
    let backwards = behavior == SplitDelimiterBehavior::MergedWithNext;
    if backwards {
        parts.reverse();
    }
    let (mut merged, mut previous): (Vec<Range<usize>>, _) = (Vec::new(), false);
    for (part, is_match) in parts {
        let joins = match behavior {
            SplitDelimiterBehavior::Contiguous => is_match == previous,
            _ => is_match && !previous,
        };
        previous = is_match;
        match merged.last_mut().filter(|_| joins) {
            Some(last) if backwards => last.start = part.start,
            Some(last) => last.end = part.end,
            None => merged.push(part),
        }
    }
    if backwards {
        merged.reverse();
    }
    merged
}

impl Metaspace {
    fn cut(&self, piece: &TextSlice) -> Vec<TextSlice> {
        let mut text = piece.text().replace(' ', self.replacement.encode_utf8(&mut [0; 4]));
        let prefixed = match self.prefix {
            PrependScheme::Always => true,
            PrependScheme::First => piece.first,
            PrependScheme::Never => false,
        };
        if prefixed && !text.starts_with(self.replacement) {
            text.insert(0, self.replacement);
        }
        let piece = piece.changed(text);
        if !self.split {
            return vec![piece];
        }
        let begins = piece.text().match_indices(self.replacement).map(|(at, _)| at);
        let mut cuts: Vec<_> = std::iter::once(0).chain(begins).chain([piece.text().len()]).collect();
        cuts.dedup();
        cuts.windows(2).map(|cut| piece.part(cut[0]..cut[1])).collect()
    }
}

fn foreign(step: &PreTokenizerWrapper, piece: &TextSlice) -> Result<Vec<TextSlice>, BoxError> {
    let text = piece.text();
    if text.len() > MAX_FOREIGN_BYTES {
        return Err(format!("a text of {} bytes is too long for this pre_tokenizer", text.len()).into());
    }
    let mut cut = PreTokenizedString::from(text);
    step.pre_tokenize(&mut cut)?;
    let parts = cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    let pieces = parts.into_iter().enumerate().map(|(i, (part, ..))| {
        let changed = piece.changed(part.to_owned());
        TextSlice { first: piece.first && i == 0, ..changed }
    });
    Ok(pieces.collect())
}
