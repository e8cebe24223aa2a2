//! Patterns of real models and their relatives, on every engine that runs them.

use std::time::{Duration, Instant};

use super::*;

fn matches(pattern: &Pattern, text: &str) -> Result<Vec<(usize, usize)>, BoxError> {
    let (mut scan, mut found) = (pattern.scan(), Vec::new());
    while let Some(range) = scan.next(text)? {
        found.push(range);
    }
    Ok(found)
}

/// The matches of the backtracking engine, with the pattern as it is.
fn expected(pattern: &str, text: &str) -> Vec<(usize, usize)> {
    let found = fancy_regex::RegexBuilder::new(pattern).oniguruma_mode(true).multi_line(true).build().unwrap();
    found.find_iter(text).map(|found| found.unwrap()).map(|found| (found.start(), found.end())).collect()
}

const TEXTS: [&str; 14] = [
    "",
    "Hello, world! It's  12345 and 1234567 things\n\n  \tdon't   ",
    "a  b   c    d     ",
    "   \n \n\n  x\r\n\r\n",
    "'s 'S 'll 'LL x'd",
    "100000 1000000x 12_ 123456é ٣٤٥٦ 12345.678",
    "ÀÉÎ e\u{301}e\u{301} नमस्ते 日本語 カタカナ",
    "!!!\n\n??? ...hello /// x",
    "\u{a0}\u{a0}\u{3000} \u{2028}x\u{85}",
    "ABCdef GHIjkl mnoPQR",
    "    def f(x):\n        return x  # comment\n",
    "1",
    "1234",
    "        x",
];

#[test]
fn linear_patterns_match_the_backtracking_engine() {
    for pattern in [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*",
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        r"\p{L}+|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        r"\s(?!\S)|x",
        r"\d{1,3}(?=(?:\d{3})*\b)",
        r"(?=(\d{3})+(?!\d))",
        r"\s+$",
        r"^\s*\S",
        "",
        "[A-Z]+(?:[a-z]+)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|[\p{Lu}\p{M}]+",
    ] {
        let compiled = Pattern::regex(pattern).unwrap();
        assert!(compiled.is_linear(), "{pattern}");
        for text in TEXTS {
            assert_eq!(matches(&compiled, text).unwrap(), expected(pattern, text), "{pattern}: {text:?}");
        }
    }
}

#[test]
fn posix_classes_cover_all_scripts() {
    let found = matches(&Pattern::regex("[[:alpha:]]+|[[:digit:]]").unwrap(), "aÉ٣1-日").unwrap();
    assert_eq!(found, [(0, 3), (3, 5), (5, 6), (7, 10)]);
}

#[test]
fn other_lookaround_patterns_work() {
    for pattern in [r"\b\w+\b", r"(?<=a)b+", r"(?>a+)b?", r"(?m:.)x", r"\w++\s", r"(?i)x(?!\S)|y"] {
        let compiled = Pattern::regex(pattern).unwrap();
        assert!(!compiled.is_linear(), "{pattern}");
        for text in TEXTS {
            assert_eq!(matches(&compiled, text).unwrap(), expected(pattern, text), "{pattern}: {text:?}");
        }
    }
}

#[test]
fn expensive_patterns_are_errors() {
    let begun = Instant::now();
    for (pattern, reason) in [
        (format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000)), "bytes"),
        (format!("{}a{}", "(".repeat(1000), ")".repeat(1000)), "nested 1000 deep"),
        (format!("{}a{}", "(?~".repeat(100), ")".repeat(100)), "nested 100 deep"),
        ("[".repeat(1000), "nested 1000 deep"),
        (r"\p{L}".repeat(50_000), "bytes, more than"),
        (r"\p{L}".repeat(1500), "takes more than"),
        ("(?:(?:a{1000}){1000}){1000}".to_owned(), "takes more than"),
        (r"(?:\p{L}{100}){100}".to_owned(), "takes more than"),
        (r"\p{L}(?!a)".repeat(700), "bytes, more than"),
        ("(a".to_owned(), ""),
        ("\\".to_owned(), ""),
    ] {
        let shown: String = pattern.chars().take(30).collect();
        let problem = Pattern::regex(&pattern).err().unwrap_or_else(|| panic!("{shown} was taken")).to_string();
        assert!(problem.contains(reason), "{shown}: {problem}");
    }
    let long = "ab".repeat(20_000);
    for pattern in
        [r"(?:a|b)*c", r"a.*c|a", r"(?:a|aa|b)+(?!\S)c\b", r"(?:a|b|ab)*(?=c)", r"(?=.*c).", r"\b(?:a|b|ab)*c"]
    {
        // An error or no match, in bounded time.
        let _ = matches(&Pattern::regex(pattern).unwrap(), &long);
    }
    for pattern in [r"(?:a|aa){22}b", r"(?:a|aa){22}(?=b)", r"(?:a|b)*a(?:a|b){500}c"] {
        let _ = matches(&Pattern::regex(pattern).unwrap(), &long);
    }
    let chained = "()".repeat(4000);
    let _ = Pattern::regex(&chained);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}
