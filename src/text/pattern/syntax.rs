//! Syntax of patterns, as far as it decides which engine runs them.

use std::sync::LazyLock;

use regex::Regex;

/// Possessive parts of patterns, and parts that are equivalent for an automaton, since the text that follows cannot
/// match or need not.
const POSSESSIVE: [(&str, &str); 3] = [
    (r"[^\r\n\p{L}\p{N}]?+\p{L}", r"[^\r\n\p{L}\p{N}]?\p{L}"),
    (r"[^\s\p{L}\p{N}]++[\r\n]*|", r"[^\s\p{L}\p{N}]+[\r\n]*|"),
    (r"\s++$|", r"\s+$|"),
];

/// Ends an alternative that no text may follow.
const NO_TEXT: &str = r"(?!\S)";

static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\w").ok());
static DECIMAL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\d").ok());

/// Whether `\w` matches, in Oniguruma: fractions and superscripts among others, and joiners not.
pub fn is_word(c: char) -> bool {
    matches!(c, '¹' | '²' | '³' | '¼' | '½' | '¾') || matches(&WORD, c) && !matches!(c, '\u{200c}' | '\u{200d}')
}

/// Whether `\d` matches.
pub fn is_decimal(c: char) -> bool {
    matches(&DECIMAL, c)
}

fn matches(regex: &Option<Regex>, c: char) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(c.encode_utf8(&mut [0; 4])))
}

/// The unescaped characters of a pattern, each with its depth in groups and classes and whether it is in a class.
fn characters(pattern: &str) -> impl Iterator<Item = (usize, char, usize, bool)> {
    let (mut escaped, mut groups, mut classes) = (false, 0usize, 0usize);
    pattern.char_indices().filter_map(move |(at, c)| {
        if std::mem::take(&mut escaped) {
            return None;
        }
        match c {
            '\\' => escaped = true,
            '[' => classes += 1,
            ']' => classes = classes.saturating_sub(1),
            '(' if classes == 0 => groups += 1,
            ')' if classes == 0 => groups = groups.saturating_sub(1),
            _ => {}
        }
        (c != '\\').then_some((at, c, groups + classes, classes > 0))
    })
}

/// How deep groups and classes are nested.
pub fn depth(pattern: &str) -> usize {
    characters(pattern).map(|(_, _, depth, _)| depth).max().unwrap_or(0)
}

/// The alternatives of a pattern, in the form that the regex crates read. `None` if it takes backtracking.
pub fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let mut pattern = POSSESSIVE.iter().fold(pattern.to_owned(), |pattern, (from, to)| pattern.replace(from, to));
    if pattern.contains("[:") {
        pattern = classes(&pattern)?;
    }
    let mut cuts = Vec::new();
    let mut previous = None;
    for (at, c, depth, in_class) in characters(&pattern) {
        let adjacent = previous.filter(|(before, _)| before + 1 == at).map(|(_, c)| c);
        if !in_class && c == '+' && matches!(adjacent, Some('?' | '*' | '+')) {
            return None;
        }
        // Oniguruma's `m` is the `s` of others.
        if !in_class && c == '?' && adjacent == Some('(') {
            let rest = &pattern[at + 1..];
            let flags = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic() && c != '-').unwrap_or(rest.len())];
            // Flags without a group of their own apply to the rest of the pattern.
            let unbounded = rest[flags.len()..].starts_with(')') && pattern.contains(NO_TEXT);
            if flags.contains(|c| c != 'i' && c != '-') || unbounded {
                return None;
            }
        }
        if c == '|' && depth == 0 {
            cuts.push(at);
        }
        previous = Some((at, c));
    }
    let starts = std::iter::once(0).chain(cuts.iter().map(|at| at + 1));
    let ends = cuts.iter().copied().chain([pattern.len()]);
    Some(starts.zip(ends).map(|(start, end)| pattern[start..end].to_owned()).collect())
}

/// The pattern with its POSIX classes, which cover all scripts in Oniguruma, written out. `None` for unknown classes.
fn classes(pattern: &str) -> Option<String> {
    let known = [
        ("[:alpha:]", r"\p{Alphabetic}"),
        ("[:digit:]", r"\d"),
        ("[:space:]", r"\s"),
        ("[:upper:]", r"\p{Uppercase}"),
        ("[:lower:]", r"\p{Lowercase}"),
        ("[:alnum:]", r"\p{Alphabetic}\d"),
        ("[:word:]", r"\w"),
    ];
    let pattern = known.iter().fold(pattern.to_owned(), |pattern, (from, to)| pattern.replace(from, to));
    (!pattern.contains("[:")).then_some(pattern)
}

/// For white space that no text follows, such as `\s+(?!\S)`: patterns that are tried in turn, and whether each takes
/// one more character, which is only looked at. `None` if it is something else.
pub fn before_no_text(alternative: &str) -> Option<Vec<(String, bool)>> {
    let spaces = alternative.strip_suffix(NO_TEXT)?;
    // A greedy repetition takes all white space but the last character, unless nothing follows.
    let counts = match spaces.strip_prefix(r"\s")? {
        "+" => vec!["+".to_owned()],
        "" => vec![String::new()],
        counts => {
            let counts = counts.strip_prefix('{')?.strip_suffix('}')?;
            let (least, most) = counts.split_once(',').unwrap_or((counts, counts));
            let (least, most): (usize, usize) = (least.parse().ok()?, most.parse().ok()?);
            if least == 0 || most > 1024 || most.checked_sub(least)? > 8 {
                return None;
            }
            (least..=most).rev().map(|count| format!("{{{count}}}")).collect()
        }
    };
    let of = |count: String| [(format!(r"\s{count}\z"), false), (format!(r"\s{count}\s"), true)];
    Some(counts.into_iter().flat_map(of).collect())
}
