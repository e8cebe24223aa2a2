//! Regular expressions of untrusted model files: small to compile, and run in bounded time.
//!
//! Files are written for Oniguruma. Nearly all patterns of models need no backtracking and run as lazy automata; the
//! rest run on a backtracking engine that counts its steps. A pattern that exceeds the bounds of both is an error.

mod backtracking;
mod digits;
mod linear;
mod syntax;

use std::collections::VecDeque;

use backtracking::BacktrackingPattern;
use linear::LinearPattern;

/// Why a pattern is refused, or could not be run.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes a pattern may have; real ones have a thousand.
const MAX_BYTES: usize = 8 << 10;
/// How deep groups and classes may be nested.
const MAX_DEPTH: usize = 32;

/// A pattern that splits or replaces text.
pub struct Pattern(PatternKind);

enum PatternKind {
    Text(String),
    /// Numeric characters, one by one or as runs.
    Numeric {
        each: bool,
    },
    Linear(LinearPattern),
    /// `\d{1,3}(?=(?:\d{3})*\b)`.
    DigitGroups,
    /// `(?=(\d{3})+(?!\d))`: before each three digits, from the right.
    DigitBreaks,
    Backtracking(Box<BacktrackingPattern>),
}

impl Pattern {
    /// A text that stands for itself.
    pub fn text(text: &str) -> Result<Self, BoxError> {
        if text.is_empty() { Self::regex("") } else { Ok(Self(PatternKind::Text(text.to_owned()))) }
    }

    /// Numeric characters, one by one or as runs.
    pub fn numeric(each: bool) -> Self {
        Self(PatternKind::Numeric { each })
    }

    /// A regular expression in Oniguruma's syntax.
    pub fn regex(pattern: &str) -> Result<Self, BoxError> {
        if pattern.len() > MAX_BYTES {
            return Err(format!("the pattern has {} bytes, more than {MAX_BYTES}", pattern.len()).into());
        }
        let depth = syntax::depth(pattern);
        if depth > MAX_DEPTH {
            return Err(format!("the pattern is nested {depth} deep, more than {MAX_DEPTH}").into());
        }
        Ok(Self(match pattern {
            digits::GROUPS => PatternKind::DigitGroups,
            digits::BREAKS => PatternKind::DigitBreaks,
            _ => match LinearPattern::new(pattern) {
                Some(linear) => PatternKind::Linear(linear?),
                None => PatternKind::Backtracking(Box::new(BacktrackingPattern::new(pattern)?)),
            },
        }))
    }

    /// The text, if it is one that stands for itself.
    pub fn as_text(&self) -> Option<&str> {
        match &self.0 {
            PatternKind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether time is linear in the text whatever it holds.
    pub fn is_linear(&self) -> bool {
        !matches!(self.0, PatternKind::Backtracking(_))
    }

    /// Looks for matches in a text.
    pub fn scan(&self) -> PatternMatches<'_> {
        PatternMatches { pattern: self, from: 0, ready: VecDeque::new(), spent: 0 }
    }
}

/// The matches of a pattern in one text, in order.
pub struct PatternMatches<'p> {
    pattern: &'p Pattern,
    /// Where to look next.
    from: usize,
    /// Matches that are known already.
    ready: VecDeque<(usize, usize)>,
    /// Work in vain: bytes looked at beyond the matches.
    spent: usize,
}

impl PatternMatches<'_> {
    /// The next match. `text` is the same at every call.
    pub fn next(&mut self, text: &str) -> Result<Option<(usize, usize)>, BoxError> {
        if let Some(found) = self.ready.pop_front() {
            return Ok(Some(found));
        }
        if self.from > text.len() {
            return Ok(None);
        }
        let found = match &self.pattern.0 {
            PatternKind::Text(needle) => {
                text[self.from..].find(needle).map(|at| (self.from + at, self.from + at + needle.len()))
            }
            PatternKind::Numeric { each } => numeric(text, self.from, *each),
            PatternKind::Linear(linear) => linear.find(text, self.from, &mut self.spent)?,
            PatternKind::DigitGroups => return Ok(self.next_of_run(digits::groups(text, self.from))),
            PatternKind::DigitBreaks => return Ok(self.next_of_run(digits::breaks(text, self.from))),
            PatternKind::Backtracking(backtracking) => backtracking.find(text, self.from, &mut self.spent)?,
        };
        self.from = match found {
            // No match is empty where the one before ended.
            Some((start, end)) if start == end => end + text[end..].chars().next().map_or(1, char::len_utf8),
            Some((_, end)) => end,
            None => text.len() + 1,
        };
        Ok(found)
    }

    /// Takes the matches in a run of digits, and goes on behind it.
    fn next_of_run(&mut self, run: Option<(Vec<(usize, usize)>, usize)>) -> Option<(usize, usize)> {
        let (matches, end) = run?;
        self.from = end;
        self.ready.extend(matches);
        self.ready.pop_front()
    }
}

fn numeric(text: &str, from: usize, each: bool) -> Option<(usize, usize)> {
    let start = from + text[from..].find(char::is_numeric)?;
    let rest = &text[start..];
    let len = match each {
        true => rest.chars().next().map_or(0, char::len_utf8),
        false => rest.find(|c: char| !c.is_numeric()).unwrap_or(rest.len()),
    };
    Some((start, start + len))
}

#[cfg(test)]
mod tests;
