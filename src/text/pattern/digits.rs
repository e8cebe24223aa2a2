//! Digits in threes from the right. The patterns for it look ahead over all digits that follow, at every digit.

/// Cohere's.
pub const GROUPS: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
/// SuperBPE's.
pub const BREAKS: &str = r"(?=(\d{3})+(?!\d))";

/// The matches of [`GROUPS`] in the next run of digits that has any, and where it ends.
pub fn groups(text: &str, mut from: usize) -> Option<(Vec<(usize, usize)>, usize)> {
    loop {
        let (ends, end) = next_run(text, from)?;
        from = end;
        // Inside a run no word ends.
        if !text[end..].chars().next().is_some_and(is_word) {
            let mut start = ends[0];
            let firsts = (ends.len() - 2) % 3 + 1;
            let groups = ends[firsts..].iter().step_by(3).map(|end| (std::mem::replace(&mut start, *end), *end));
            return Some((groups.collect(), end));
        }
    }
}

/// The empty matches of [`BREAKS`] in the next run of digits that has any, and where it ends.
pub fn breaks(text: &str, mut from: usize) -> Option<(Vec<(usize, usize)>, usize)> {
    loop {
        let (ends, end) = next_run(text, from)?;
        from = end;
        let digits = ends.len() - 1;
        if digits >= 3 {
            let breaks = ends[digits % 3..digits].iter().step_by(3).map(|at| (*at, *at));
            return Some((breaks.collect(), end));
        }
    }
}

/// Where the digits of the next run begin, and where the last one ends, twice.
fn next_run(text: &str, from: usize) -> Option<(Vec<usize>, usize)> {
    let start = from + text[from..].find(is_digit)?;
    let mut ends = vec![start];
    ends.extend(
        text[start..].char_indices().take_while(|(_, c)| is_digit(*c)).map(|(at, c)| start + at + c.len_utf8()),
    );
    let end = *ends.last()?;
    Some((ends, end))
}

/// Whether `\d` matches, in every script.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric() && super::syntax::is_decimal(c))
}

fn is_word(c: char) -> bool {
    super::syntax::is_word(c)
}
