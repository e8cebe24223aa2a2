//! The methods of strings.

use std::ops::Range;

use super::{
    args::Args,
    budget::{Outcome, check_text, fail},
    dict::DictBuilder,
    format, html, letters,
    lexer::is_space,
    repr::is_printable,
    text::{Text, TextBuilder},
    value::{Value, excerpt},
    vm::Vm,
};

pub const METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Memory that each part of a split text takes at least.
const PART_BYTES: usize = 128;

pub fn call(vm: &mut Vm<'_>, text: &Text, name: &str, args: Args) -> Outcome<Value> {
    vm.budget.scan(text.len())?;
    match name {
        "format" => return format::format(vm, text, args).map(Value::Text),
        "format_map" => {
            let [mapping] = args.bind(name, ["mapping"])?;
            let Value::Dict(mapping) = Args::required(mapping, name, "mapping")? else {
                return fail("format_map() needs a mapping");
            };
            let mut args = Args::default();
            for (key, value) in mapping.iter() {
                if let Value::Text(key) = key {
                    args.keywords.push((key.clone(), value.clone()));
                }
            }
            return format::format(vm, text, args).map(Value::Text);
        }
        "join" => {
            let [parts] = args.bind(name, ["iterable"])?;
            return join(vm, text, &Args::required(parts, name, "iterable")?);
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (needed(old, name, "old")?, needed(new, name, "new")?);
            return replace(text, &old, &new, count_of(count)?).map(Value::Text);
        }
        "encode" => return fail("str.encode() is not supported: there are no bytes"),
        "maketrans" => return maketrans(vm, args),
        "translate" => {
            let [table] = args.bind(name, ["table"])?;
            return translate(vm, text, &Args::required(table, name, "table")?);
        }
        _ => {}
    }
    if name.starts_with("is") {
        let [] = args.bind(name, [])?;
        vm.budget.work(text.len() / 4)?;
        return Ok(Value::Bool(letters::is(text, name)));
    }
    match name {
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => split(vm, text, name, args),
        "count" | "find" | "index" | "rfind" | "rindex" | "startswith" | "endswith" => search(vm, text, name, args),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            strip(text, name, chars.as_ref()).map(Value::Text)
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.bind(name, ["part"])?;
            let part = needed(part, name, "part")?;
            let rest = if name == "removeprefix" { text.strip_prefix(&*part) } else { text.strip_suffix(&*part) };
            text.slice_of(rest.unwrap_or(text)).map(Value::Text)
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width = Args::required(width, name, "width")?;
            let fill = match fill {
                Some(fill) => fill.as_text().map(|fill| fill.to_string()),
                None => Some(if name == "zfill" { "0" } else { " " }.to_owned()),
            };
            pad(text, name, &width, &fill.unwrap_or_default()).map(Value::Text)
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            expand_tabs(text, size.and_then(|size| size.as_int()).unwrap_or(8)).map(Value::Text)
        }
        _ => {
            let [] = args.bind(name, [])?;
            map_case(text, name).map(Value::Text)
        }
    }
}

/// The text with its letters in another case.
pub fn map_case(text: &Text, name: &str) -> Outcome<Text> {
    text.budget().scan(8 * text.len())?;
    let _held = text.budget().hold(3 * text.len())?;
    let mapped = match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => letters::casefold(text),
        "capitalize" => letters::capitalize(text),
        "swapcase" => letters::swapcase(text),
        "title" => letters::title(text),
        _ => return fail(format!("strings have no method '{}'", excerpt(name))),
    };
    if mapped == **text { Ok(text.clone()) } else { text.derived(mapped) }
}

fn needed(value: Option<Value>, function: &str, name: &str) -> Outcome<Text> {
    match Args::required(value, function, name)? {
        Value::Text(text) => Ok(text),
        other => fail(format!("{function}() argument '{name}' must be str, not {}", other.type_name())),
    }
}

/// A number of times, of which negative ones and none mean all.
pub fn count_of(count: Option<Value>) -> Outcome<usize> {
    match count {
        None | Some(Value::None) => Ok(usize::MAX),
        Some(count) => match count.as_int() {
            Some(count) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
            None => fail(format!("'{}' object cannot be interpreted as an integer", count.type_name())),
        },
    }
}

/// The indices between two bounds, as slices have them.
pub fn bounds(bounds: &[Value; 2], len: usize) -> Outcome<Range<usize>> {
    let bound = |value: &Value, default: usize| match value {
        Value::None => Ok(default),
        value => match value.as_int() {
            Some(at) if at < 0 => Ok(usize::try_from(at.saturating_add(len as i128)).unwrap_or(0)),
            Some(at) => Ok(usize::try_from(at).unwrap_or(usize::MAX).min(len)),
            None => fail("slice indices must be integers or None"),
        },
    };
    let start = bound(&bounds[0], 0)?;
    Ok(start..bound(&bounds[1], len)?.max(start))
}

/// `separator.join(parts)`
fn join(vm: &mut Vm<'_>, separator: &Text, parts: &Value) -> Outcome<Value> {
    let parts = parts.items(&vm.budget)?;
    let is_markup = separator.is_markup();
    let mut out = TextBuilder::new(&vm.budget)?;
    for (i, part) in parts.iter().enumerate() {
        let Value::Text(part) = part else {
            return fail(format!("sequence item {i}: expected str instance, {} found", part.type_name()));
        };
        if i > 0 {
            out.push(separator)?;
        }
        if is_markup { out.push(&html::escape(part)?)? } else { out.push(part)? }
    }
    out.finish()?.with_markup(is_markup).map(Value::Text)
}

/// With `new` in place of the first `count` of `old`.
pub fn replace(text: &Text, old: &Text, new: &Text, count: usize) -> Outcome<Text> {
    let budget = text.budget();
    budget.scan(text.len())?;
    let mut out = TextBuilder::new(budget)?;
    let mut from = 0;
    for (at, found) in text.match_indices(&**old).take(count) {
        out.push_range(text, from..at)?;
        out.push(new)?;
        from = at + found.len();
    }
    if out.len() == 0 && from == 0 {
        return Ok(text.clone());
    }
    out.push_range(text, from..text.len())?;
    out.finish()
}

/// `strip`, `lstrip` or `rstrip`.
pub fn strip(text: &Text, name: &str, chars: Option<&Value>) -> Outcome<Text> {
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(Value::Text(chars)) => Some(chars),
        Some(other) => return fail(format!("{name} arg must be None or str, not {}", other.type_name())),
    };
    text.budget().scan(text.len().saturating_mul(1 + chars.map_or(0, |chars| chars.len())))?;
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let rest: &str = text;
    let rest = if name == "rstrip" { rest } else { rest.trim_start_matches(goes) };
    text.slice_of(if name == "lstrip" { rest } else { rest.trim_end_matches(goes) })
}

fn split(vm: &mut Vm<'_>, text: &Text, name: &str, args: Args) -> Outcome<Value> {
    let from_right = name.starts_with('r');
    if name.ends_with("partition") {
        let [separator] = args.bind(name, ["sep"])?;
        let separator = needed(separator, name, "sep")?;
        if separator.is_empty() {
            return fail("empty separator");
        }
        let found = if from_right { text.rfind(&*separator) } else { text.find(&*separator) };
        let parts = match found {
            Some(at) => [text.slice(0..at)?, separator.clone(), text.slice(at + separator.len()..text.len())?],
            None if from_right => [text.slice(0..0)?, text.slice(0..0)?, text.clone()],
            None => [text.clone(), text.slice(0..0)?, text.slice(0..0)?],
        };
        return Value::tuple(&vm.budget, parts.map(Value::Text).into());
    }
    let hold = |parts: usize, limit: usize| vm.budget.hold(parts.min(limit).saturating_mul(PART_BYTES));
    let spaces = || text.chars().filter(|c| is_space(*c) || *c == '\u{85}').count() + 1;
    let parts = if name == "splitlines" {
        let [keep_ends] = args.bind(name, ["keepends"])?;
        let _held = hold(spaces(), usize::MAX)?;
        letters::lines(text, keep_ends.is_some_and(|keep| keep.is_true()))
    } else {
        let [separator, limit] = args.bind(name, ["sep", "maxsplit"])?;
        let limit = count_of(limit)?;
        match separator {
            None | Some(Value::None) => {
                let _held = hold(spaces(), limit.saturating_add(1))?;
                letters::split_words(text, from_right, limit)
            }
            Some(separator) => {
                let separator = needed(Some(separator), name, "sep")?;
                let _held = hold(text.matches(&*separator).count() + 1, limit.saturating_add(1))?;
                split_at(text, &separator, from_right, limit)?
            }
        }
    };
    vm.budget.work(parts.len())?;
    let parts = parts.into_iter().map(|part| text.slice_of(part).map(Value::Text)).collect::<Outcome<_>>()?;
    vm.list(parts)
}

fn split_at<'a>(text: &'a str, separator: &str, from_right: bool, limit: usize) -> Outcome<Vec<&'a str>> {
    if separator.is_empty() {
        return fail("empty separator");
    }
    let pieces = limit.saturating_add(1);
    let mut parts: Vec<&str> =
        if from_right { text.rsplitn(pieces, separator).collect() } else { text.splitn(pieces, separator).collect() };
    if from_right {
        parts.reverse();
    }
    Ok(parts)
}

/// `count`, `find` and their like: of a part of the text, between two bounds.
fn search(vm: &mut Vm<'_>, text: &Text, name: &str, args: Args) -> Outcome<Value> {
    let [part, start, stop] = args.bind(name, ["sub", "start", "end"])?;
    let part = Args::required(part, name, "sub")?;
    let limits = [start.unwrap_or(Value::None), stop.unwrap_or(Value::None)];
    let chars = text.char_count()?;
    let range = bounds(&limits, chars)?;
    let is_beyond = limits[0].as_int().is_some_and(|start| start > chars as i128);
    let bytes = text.byte_of(range.start)?..text.byte_of(range.end)?;
    let within = &text[bytes.clone()];
    if name.ends_with("with") {
        let matches = |part: &Value| match part {
            Value::Text(part) if name == "startswith" => Ok(!is_beyond && within.starts_with(&**part)),
            Value::Text(part) => Ok(!is_beyond && within.ends_with(&**part)),
            other => {
                let kind = other.type_name();
                fail(format!("{name} first arg must be str or a tuple of str, not {kind}"))
            }
        };
        let Value::Tuple(parts) = &part else { return matches(&part).map(Value::Bool) };
        for part in parts.iter() {
            vm.budget.work(1)?;
            if matches(part)? {
                return Ok(Value::Bool(true));
            }
        }
        return Ok(Value::Bool(false));
    }
    let part = needed(Some(part), name, "sub")?;
    let found = match name {
        "count" if is_beyond => return Ok(Value::Int(0)),
        "count" if part.is_empty() => return Ok(Value::Int(range.len() as i128 + 1)),
        "count" => return Ok(Value::Int(within.matches(&*part).count() as i128)),
        _ if is_beyond => None,
        "find" | "index" => within.find(&*part),
        _ => within.rfind(&*part),
    };
    match found {
        Some(at) => Ok(Value::Int((range.start + within[..at].chars().count()) as i128)),
        None if name.ends_with("index") => fail("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}

/// A text with others before and behind, so that it has as many characters.
pub fn pad(text: &Text, name: &str, width: &Value, fill: &str) -> Outcome<Text> {
    let Some(width) = width.as_int() else {
        return fail(format!("'{}' object cannot be interpreted as an integer", width.type_name()));
    };
    if fill.chars().count() != 1 {
        return fail("The fill character must be exactly one character long");
    }
    let len = text.char_count()?;
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(len);
    check_text(missing.saturating_mul(fill.len()))?;
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let sign = usize::from(name == "zfill" && text.starts_with(['+', '-']));
    let mut out = TextBuilder::new(text.budget())?;
    let _held = text.budget().hold(missing * fill.len())?;
    out.push_range(text, 0..sign)?;
    out.push_str(&fill.repeat(left))?;
    out.push_range(text, sign..text.len())?;
    out.push_str(&fill.repeat(missing - left))?;
    out.finish()
}

fn expand_tabs(text: &Text, size: i128) -> Outcome<Text> {
    let size = usize::try_from(size.clamp(0, 1 << 20)).unwrap_or(0);
    let mut out = TextBuilder::new(text.budget())?;
    let (mut from, mut column) = (0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '\t' => {
                out.push_range(text, from..at)?;
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(spaces))?;
                (from, column) = (at + 1, column + spaces);
            }
            '\n' | '\r' => column = 0,
            _ => column += 1,
        }
    }
    out.push_range(text, from..text.len())?;
    out.finish()
}

fn maketrans(vm: &mut Vm<'_>, args: Args) -> Outcome<Value> {
    let [from, to, removed] = args.bind("maketrans", ["x", "y", "z"])?;
    let mut table = DictBuilder::new(&vm.budget)?;
    let code = |c: char| Value::Int(i128::from(u32::from(c)));
    match (Args::required(from, "maketrans", "x")?, to, removed) {
        (Value::Dict(entries), None, None) => {
            for (key, value) in entries.iter() {
                let key = match key {
                    Value::Text(text) => match (text.chars().next(), text.char_count()?) {
                        (Some(c), 1) => code(c),
                        _ => return fail("string keys in translate table must be of length 1"),
                    },
                    other => other.clone(),
                };
                table.insert(key, value.clone())?;
            }
        }
        (Value::Text(from), Some(Value::Text(to)), removed) => {
            if from.char_count()? != to.char_count()? {
                return fail("the first two maketrans arguments must have equal length");
            }
            for (from, to) in from.chars().zip(to.chars()) {
                table.insert(code(from), code(to))?;
            }
            for c in removed.as_ref().and_then(Value::as_text).iter().flat_map(|text| text.chars()) {
                table.insert(code(c), Value::None)?;
            }
        }
        _ => return fail("maketrans() needs a dict, or two strings"),
    }
    table.finish().map(Value::Dict)
}

fn translate(vm: &mut Vm<'_>, text: &Text, table: &Value) -> Outcome<Value> {
    let Value::Dict(table) = table else { return fail("translate() needs a dict") };
    let mut out = TextBuilder::new(&vm.budget)?;
    for (at, c) in text.char_indices() {
        let code = Value::Int(i128::from(u32::from(c)));
        match table.get(&vm.budget, &code)? {
            None => out.push_range(text, at..at + c.len_utf8())?,
            Some(Value::None) => {}
            Some(Value::Text(other)) => out.push(other)?,
            Some(other) => match other.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32) {
                Some(c) => out.push_derived(c.encode_utf8(&mut [0; 4]), text)?,
                None => return fail("character mapping must return integer, None or str"),
            },
        }
    }
    out.finish().map(Value::Text)
}

/// Whether Python takes a text for the name of something.
pub fn is_identifier(text: &str) -> bool {
    let starts = |c: char| c == '_' || c.is_alphabetic();
    text.starts_with(starts) && text.chars().all(|c| starts(c) || c.is_alphanumeric())
}

/// `str.isprintable`
pub fn is_all_printable(text: &str) -> bool {
    text.chars().all(is_printable)
}
