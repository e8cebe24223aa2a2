//! What templates take from Python: how values are written, and the methods of strings, lists and dicts.
//!
//! Where minijinja itself differs from Jinja, it stays so: `~` writes the strings in lists and dicts with double
//! quotes, tuples are lists, a `for` over `none` has no turns, `loop.last` is not known for the characters of a
//! string, and the `if` of a `for` is asked before its first turn.

use std::fmt::Write as _;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::bounds::{MAX_DEPTH, check_bytes, check_items, failed};

/// The most bytes that may stand before a line.
const MAX_INDENT: usize = 256;
/// The longest text that padding may give.
const MAX_WIDTH: usize = 1 << 20;

/// Refuses formats that could write too much: each number in them may be a width, each field the longest value.
pub fn check_format(format: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let width = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
    let fields = format.matches(['{', '%']).count();
    let mut longest = 0;
    for arg in args {
        longest = longest.max(to_str(arg)?.len());
    }
    check_bytes(fields.saturating_mul(longest).saturating_add(width))
}

/// Characters that no text may contain. [`Marks`](super::marks::Marks) puts some into the text of users;
/// here they count for nothing.
pub fn is_mark(c: char) -> bool {
    ('\u{FDD0}'..='\u{FDEF}').contains(&c)
}

/// `str.isspace`
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1C'..='\x1F').contains(&c)
}

/// `str(value)`
pub fn to_str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Undefined => Ok(String::new()),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed("a value is nested too deep to be written"));
    }
    check_bytes(out.len() + value.as_str().map_or(0, str::len))?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => out.push_str(&float_repr(f64::try_from(value.clone())?)),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// `repr` of a string.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    // Rust leaves the same characters as they are, combining ones behind another.
    let printable = |c: char| is_mark(c) || c == '"' || c == '\'' || format!("a{c}").escape_debug().count() == 2;
    out.push(quote);
    for c in text.chars() {
        let _ = match c {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            _ if c == quote => write!(out, "\\{c}"),
            _ if printable(c) => write!(out, "{c}"),
            ..='\u{FF}' => write!(out, "\\x{:02x}", u32::from(c)),
            ..='\u{FFFF}' => write!(out, "\\u{:04x}", u32::from(c)),
            _ => write!(out, "\\U{:08x}", u32::from(c)),
        };
    }
    out.push(quote);
}

/// `repr` of a float: the fewest digits, with an exponent below 1e-4 and from 1e16 on.
pub fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if number == 0.0 || (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// The arguments of a function by name, whether they were given by position or by name.
pub fn named<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (positional, keywords): (&[Value], Kwargs) = from_args(args)?;
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut found = [const { None }; N];
    for (i, name) in names.into_iter().enumerate() {
        found[i] = match positional.get(i) {
            Some(value) => Some(value.clone()),
            None => keywords.get::<Option<Value>>(name)?,
        };
    }
    keywords.assert_all_used()?;
    Ok(found)
}

fn text(value: Option<&Value>) -> Result<&str, Error> {
    value.and_then(Value::as_str).ok_or_else(|| failed("a string is needed"))
}

/// Calls a method of a Python object.
pub fn call_method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    check_items(value)?;
    let found = match (value.kind(), value.as_str()) {
        (_, Some(text)) => string_method(text, name, args)?,
        (ValueKind::Map, _) => map_method(value, name, args)?,
        (ValueKind::Seq | ValueKind::Iterable, _) => list_method(value, name, args)?,
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn map_method(map: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let keys = || map.try_iter();
    Ok(Some(match name {
        "copy" => keys()?.map(|key| Ok((key.clone(), map.get_item(&key)?))).collect::<Result<Value, Error>>()?,
        "items" => keys()?
            .map(|key| Ok(Value::from(vec![key.clone(), map.get_item(&key)?])))
            .collect::<Result<Value, Error>>()?,
        "keys" => keys()?.collect(),
        "values" => keys()?.map(|key| map.get_item(&key)).collect::<Result<Value, Error>>()?,
        "get" => {
            let [key, default] = named(args, ["key", "default"])?;
            let value = map.get_item(&key.unwrap_or_default())?;
            if value.is_undefined() { default.unwrap_or(Value::from(())) } else { value }
        }
        _ => return Ok(None),
    }))
}

fn list_method(list: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "copy" => list.try_iter()?.collect(),
        "count" => {
            let [item] = named(args, ["item"])?;
            list.try_iter()?.filter(|other| Some(other) == item.as_ref()).count().into()
        }
        "index" => {
            let [item] = named(args, ["item"])?;
            let at = list.try_iter()?.position(|other| Some(&other) == item.as_ref());
            at.ok_or_else(|| failed("the value is not in the list"))?.into()
        }
        _ => return Ok(None),
    }))
}

fn string_method(s: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    check_bytes(s.len())?;
    let is_all = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    Ok(Some(match name {
        // Between any two characters there is an empty text.
        "count" => {
            let [part] = named(args, ["sub"])?;
            match text(part.as_ref())? {
                "" => s.chars().count() + 1,
                part => s.matches(part).count(),
            }
            .into()
        }
        "replace" => {
            let [old, new, count] = named(args, ["old", "new", "count"])?;
            let count = count.and_then(|count| count.as_usize());
            replace(s, text(old.as_ref())?, text(new.as_ref())?, count)?.into()
        }
        "format" => {
            check_format(s, args)?;
            return Ok(None);
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = named(args, ["chars"])?;
            strip(s, name, chars.as_ref())?.into()
        }
        "split" | "rsplit" => {
            let [separator, limit] = named(args, ["sep", "maxsplit"])?;
            split(s, name == "rsplit", separator.as_ref(), limit.as_ref())?
        }
        "splitlines" => {
            let [keep_ends] = named(args, ["keepends"])?;
            lines(s, keep_ends.is_some_and(|keep| keep.is_true())).into_iter().collect()
        }
        "partition" | "rpartition" => {
            let [separator] = named(args, ["sep"])?;
            let separator = text(separator.as_ref())?;
            let parts = if name == "partition" { s.split_once(separator) } else { s.rsplit_once(separator) };
            let parts = match (parts, name) {
                (Some((before, after)), _) => [before, separator, after],
                (None, "partition") => [s, "", ""],
                (None, _) => ["", "", s],
            };
            parts.into_iter().collect()
        }
        "removeprefix" => s.strip_prefix(text(args.first())?).unwrap_or(s).into(),
        "removesuffix" => s.strip_suffix(text(args.first())?).unwrap_or(s).into(),
        "find" | "rfind" | "index" | "rindex" => {
            let [part] = named(args, ["sub"])?;
            let part = text(part.as_ref())?;
            match if name.starts_with('r') { s.rfind(part) } else { s.find(part) } {
                Some(at) => s[..at].chars().count().into(),
                None if name.ends_with("index") => return Err(failed("substring not found")),
                None => (-1).into(),
            }
        }
        "title" => title(s).into(),
        "capitalize" => capitalize(s).into(),
        "swapcase" => {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            s.chars().map(swap).collect::<String>().into()
        }
        "casefold" => s.to_lowercase().into(),
        "zfill" | "ljust" | "rjust" | "center" => pad(s, name, args)?.into(),
        "join" => {
            let [parts] = named(args, ["iterable"])?;
            let parts = parts.unwrap_or_default();
            join(s, parts.try_iter()?.map(|part| text(Some(&part)).map(str::to_owned)))?.into()
        }
        "isspace" => is_all(is_space).into(),
        "isalpha" => is_all(char::is_alphabetic).into(),
        "isalnum" => is_all(char::is_alphanumeric).into(),
        "isdigit" | "isnumeric" | "isdecimal" => is_all(char::is_numeric).into(),
        "isupper" => (s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase)).into(),
        "islower" => (s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase)).into(),
        _ => return Ok(None),
    }))
}

/// Texts with another one between them.
pub fn join(separator: &str, parts: impl Iterator<Item = Result<String, Error>>) -> Result<String, Error> {
    let mut out = String::new();
    for (i, part) in parts.enumerate() {
        let (separator, part) = (if i == 0 { "" } else { separator }, part?);
        // Parts that are empty take their time, too.
        check_bytes(i.max(out.len() + separator.len() + part.len()))?;
        out.extend([separator, &part]);
    }
    Ok(out)
}

/// With `new` in place of the first `count` of `old`, or of all.
pub fn replace(s: &str, old: &str, new: &str, count: Option<usize>) -> Result<String, Error> {
    let count = count.unwrap_or(usize::MAX);
    let found = s.matches(old).take(count).count();
    check_bytes(found.saturating_mul(new.len()).saturating_add(s.len()))?;
    Ok(s.replacen(old, new, count))
}

/// `strip`, or what of it is done on the left or right.
pub fn strip<'a>(s: &'a str, name: &str, chars: Option<&Value>) -> Result<&'a str, Error> {
    let chars = match chars.filter(|chars| !chars.is_none()) {
        Some(chars) => Some(text(Some(chars))?),
        None => None,
    };
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let s = if name == "rstrip" { s } else { s.trim_start_matches(goes) };
    Ok(if name == "lstrip" { s } else { s.trim_end_matches(goes) })
}

fn split(s: &str, from_right: bool, separator: Option<&Value>, limit: Option<&Value>) -> Result<Value, Error> {
    let limit = limit.and_then(Value::as_i64).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let pieces = limit.saturating_add(1);
    let Some(separator) = separator.filter(|separator| !separator.is_none()) else {
        return Ok(split_words(s, from_right, limit).into_iter().collect());
    };
    let separator = text(Some(separator))?;
    if separator.is_empty() {
        return Err(failed("empty separator"));
    }
    let mut parts: Vec<&str> =
        if from_right { s.rsplitn(pieces, separator).collect() } else { s.splitn(pieces, separator).collect() };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().collect())
}

/// Splits at space. With a limit, what is left over keeps the space in it and at its far end.
fn split_words(s: &str, from_right: bool, limit: usize) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), s);
    loop {
        rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        let cut = if words.len() == limit {
            None
        } else if from_right {
            rest.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(at, c)| at + c.len_utf8())
        } else {
            rest.find(is_space)
        };
        let Some(at) = cut else {
            words.push(rest);
            break;
        };
        let (left, right) = rest.split_at(at);
        words.push(if from_right { right } else { left });
        rest = if from_right { left } else { right };
    }
    if from_right {
        words.reverse();
    }
    words
}

/// `str.splitlines`
fn lines(s: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1C'..='\x1E' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), s);
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep_ends { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    lines
}

/// `str.title`: the first letter of each run of letters is upper case.
fn title(s: &str) -> String {
    capitalised(s, char::is_alphabetic)
}

/// Jinja's `title`: the first letter of each word is upper case.
pub fn title_words(s: &str) -> String {
    capitalised(s, |c| !is_space(c) && !"-({[<".contains(c))
}

/// All in lower case but what does not come after a character that is `inside` a word.
fn capitalised(s: &str, inside: impl Fn(char) -> bool) -> String {
    let (mut out, mut in_word) = (String::with_capacity(s.len()), false);
    for c in s.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = inside(c);
    }
    out
}

/// Jinja's `indent`
pub fn indent(args: &[Value]) -> Result<String, Error> {
    let [text, width, first, blank] = named(args, ["s", "width", "first", "blank"])?;
    let indent = match width {
        Some(width) => indentation(&width)?,
        None => " ".repeat(4),
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is_true(first), is_true(blank));
    let text = to_str(&text.unwrap_or_default())? + "\n";
    check_bytes(text.len())?;
    let mut out = String::new();
    for (i, line) in lines(&text, false).into_iter().enumerate() {
        out.push_str(if i == 0 { "" } else { "\n" });
        let indented = if i == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if indented { &indent } else { "" });
        out.push_str(line);
        check_bytes(out.len())?;
    }
    Ok(out)
}

/// What stands before a line: a text, or as many spaces.
pub fn indentation(width: &Value) -> Result<String, Error> {
    match width.as_str() {
        None => Ok(" ".repeat(width.as_usize().unwrap_or_default().min(MAX_INDENT))),
        Some(text) if text.len() <= MAX_INDENT => Ok(text.to_owned()),
        Some(text) => Err(failed(format!("an indent of {} bytes is longer than {MAX_INDENT}", text.len()))),
    }
}

/// Jinja's `int`: the default, 0, for what is no number.
pub fn int(args: &[Value]) -> Result<Value, Error> {
    let [value, default, base] = named(args, ["value", "default", "base"])?;
    let value = value.unwrap_or_default();
    let base = base.and_then(|base| u32::try_from(base).ok()).filter(|base| (2..=36).contains(base)).unwrap_or(10);
    let found = match value.as_str().map(|text| text.trim_matches(is_space).replace('_', "")) {
        Some(text) => i64::from_str_radix(&text, base).ok().or_else(|| Some(text.parse::<f64>().ok()? as i64)),
        None if value.is_integer() => return Ok(value),
        None if value.kind() == ValueKind::Bool => Some(value.is_true().into()),
        None => f64::try_from(value).ok().map(|number| number as i64),
    };
    Ok(found.map_or_else(|| default.unwrap_or(Value::from(0)), Value::from))
}

/// Jinja's `float`: the default, 0, for what is no number.
pub fn float(args: &[Value]) -> Result<Value, Error> {
    let [value, default] = named(args, ["value", "default"])?;
    let value = value.unwrap_or_default();
    let found = match value.as_str() {
        Some(text) => text.trim_matches(is_space).parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value).ok(),
    };
    Ok(found.map_or_else(|| default.unwrap_or(Value::from(0.0)), Value::from))
}

/// `str.capitalize`
pub fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

fn pad(s: &str, name: &str, args: &[Value]) -> Result<String, Error> {
    let [width, fill] = named(args, ["width", "fillchar"])?;
    let width = width.and_then(|width| width.as_usize()).unwrap_or_default().min(MAX_WIDTH);
    let fill = fill.as_ref().and_then(Value::as_str).unwrap_or(if name == "zfill" { "0" } else { " " });
    if fill.chars().count() != 1 {
        return Err(failed("The fill character must be exactly one character long"));
    }
    let len = s.chars().count();
    let missing = width.saturating_sub(len);
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match s.strip_prefix(['+', '-']) {
        Some(digits) if name == "zfill" => s.split_at(s.len() - digits.len()),
        _ => ("", s),
    };
    Ok([sign, &fill.repeat(left), digits, &fill.repeat(missing - left)].concat())
}

/// `datetime.strftime` of a time without a zone, in the format of chrono.
pub fn date_format(format: &str) -> String {
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('f') => out.push_str("%6f"),
                Some('z' | 'Z') => {}
                Some(other) => out.extend(['%', other]),
                None => out.push_str("%%"),
            },
        }
    }
    out
}
