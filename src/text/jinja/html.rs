//! Text for HTML.

use super::{
    budget::Outcome,
    text::{Text, TextBuilder},
    value::Value,
};

/// The text, escaped for HTML unless it is HTML already.
pub fn escape(text: &Text) -> Outcome<Text> {
    if text.is_markup() { Ok(text.clone()) } else { force_escape(text) }
}

pub fn force_escape(text: &Text) -> Outcome<Text> {
    let mut out = TextBuilder::new(text.budget())?;
    let mut from = 0;
    for (at, c) in text.char_indices() {
        let escaped = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '\'' => "&#39;",
            '"' => "&#34;",
            _ => continue,
        };
        out.push_range(text, from..at)?;
        out.push_derived(escaped, text)?;
        from = at + 1;
    }
    out.push_range(text, from..text.len())?;
    out.finish()?.with_markup(true)
}

/// The text without comments and tags, unescaped, with each run of white space made one space.
pub fn strip_tags(text: &Text) -> Outcome<Value> {
    text.budget().scan(8 * text.len())?;
    let _held = text.budget().hold(4 * text.len())?;
    let without = without(&without(text, "<!--", "-->"), "<", ">");
    let words = super::letters::split_words(&without, false, usize::MAX);
    text.derived(unescape(&words.join(" "))).map(Value::Text)
}

/// The text without the parts from an opening mark to the next closing one.
fn without(text: &str, start: &str, end: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(start)
        && let Some((_, after)) = after.split_once(end)
    {
        out.push_str(before);
        rest = after;
    }
    out + rest
}

/// The most common of the names that HTML has for characters, and all numbers.
fn unescape(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.bytes().take(12).position(|b| b == b';').unwrap_or(0);
        let name = rest.get(1..end).unwrap_or_default();
        let code = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
        let found = match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            "nbsp" => Some('\u{A0}'),
            _ => match name.strip_prefix('#') {
                Some(digits) if digits.starts_with(['x', 'X']) => code(&digits[1..], 16),
                Some(digits) => code(digits, 10),
                None => None,
            },
        };
        match found {
            Some(c) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

/// A text with all but letters, digits and some signs as `%XX`. In queries a space is `+`.
pub fn quote_url(text: &Text, in_query: bool) -> Outcome<Text> {
    text.budget().scan(4 * text.len())?;
    let mut out = TextBuilder::new(text.budget())?;
    for byte in text.bytes() {
        let c = char::from(byte);
        let quoted = match c {
            _ if c.is_ascii_alphanumeric() || "_.-~".contains(c) => c.to_string(),
            '/' if !in_query => c.to_string(),
            ' ' if in_query => "+".to_owned(),
            _ => format!("%{byte:02X}"),
        };
        out.push_derived(&quoted, text)?;
    }
    out.finish()
}
