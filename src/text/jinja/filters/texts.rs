//! Filters of texts.

use super::super::{
    args::Args,
    attributes,
    budget::{Outcome, check_text, fail},
    format as formats, html,
    json::indentation,
    letters, repr, strings,
    text::{Text, TextBuilder},
    value::Value,
    vm::Vm,
};

fn mapped(vm: &mut Vm<'_>, value: &Value, args: Args, name: &str) -> Outcome<Value> {
    let [] = args.bind(name, [])?;
    let text = repr::to_text(vm, value)?;
    strings::map_case(&text, name)?.with_markup(text.is_markup()).map(Value::Text)
}

pub fn upper(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    mapped(vm, &value, args, "upper")
}

pub fn lower(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    mapped(vm, &value, args, "lower")
}

pub fn capitalize(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    mapped(vm, &value, args, "capitalize")
}

pub fn title(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("title", [])?;
    let text = repr::to_text(vm, &value)?;
    vm.budget.scan(8 * text.len())?;
    let _held = vm.budget.hold(2 * text.len())?;
    text.derived(letters::title_words(&text)).map(Value::Text)
}

pub fn string(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("string", [])?;
    repr::to_text(vm, &value).map(Value::Text)
}

pub fn center(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [width] = args.bind("center", ["width"])?;
    let text = repr::to_text(vm, &value)?;
    strings::pad(&text, "center", &width.unwrap_or(Value::Int(80)), " ").map(Value::Text)
}

pub fn escape(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("escape", [])?;
    html::escape(&repr::to_text(vm, &value)?).map(Value::Text)
}

pub fn forceescape(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("forceescape", [])?;
    html::force_escape(&repr::to_text(vm, &value)?).map(Value::Text)
}

pub fn safe(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("safe", [])?;
    repr::to_text(vm, &value)?.with_markup(true).map(Value::Text)
}

pub fn striptags(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("striptags", [])?;
    html::strip_tags(&repr::to_text(vm, &value)?)
}

/// `value % arguments`
pub fn format(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let text = repr::to_text(vm, &value)?;
    let Args { positional, keywords } = args;
    let values = match (positional.is_empty(), keywords.is_empty()) {
        (false, false) => return fail("can't handle positional and keyword arguments at the same time"),
        (_, true) => Value::tuple(&vm.budget, positional)?,
        _ => {
            let mut dict = super::super::dict::DictBuilder::new(&vm.budget)?;
            for (name, value) in keywords {
                dict.insert(Value::Text(name), value)?;
            }
            Value::Dict(dict.finish()?)
        }
    };
    formats::percent(vm, &text, &values).map(Value::Text)
}

pub fn trim(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [chars] = args.bind("trim", ["chars"])?;
    strings::strip(&repr::to_text(vm, &value)?, "strip", chars.as_ref()).map(Value::Text)
}

pub fn replace(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [old, new, count] = args.bind("replace", ["old", "new", "count"])?;
    let (old, new) = (Args::required(old, "replace", "old")?, Args::required(new, "replace", "new")?);
    let (old, new) = (repr::to_text(vm, &old)?, repr::to_text(vm, &new)?);
    let text = repr::to_text(vm, &value)?;
    strings::replace(&text, &old, &new, strings::count_of(count)?).map(Value::Text)
}

pub fn join(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator = match separator {
        Some(separator) => repr::to_text(vm, &separator)?,
        None => Text::new(&vm.budget, "")?,
    };
    let mut out = TextBuilder::new(&vm.budget)?;
    for (i, item) in value.items(&vm.budget)?.iter().enumerate() {
        if i > 0 {
            out.push(&separator)?;
        }
        match &attribute {
            None | Some(Value::None) => repr::write_str(vm, &mut out, item)?,
            Some(path) => {
                let item = attributes::path(vm, item, path)?;
                repr::write_str(vm, &mut out, &item)?;
            }
        }
    }
    out.finish().map(Value::Text)
}

pub fn indent(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let indent = indentation(vm, &width.unwrap_or(Value::Int(4)))?;
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is_true(first), is_true(blank));
    value.check_defined()?;
    let Value::Text(text) = value else {
        return fail(format!("unsupported operand type(s) for +: '{}' and 'str'", value.type_name()));
    };
    vm.budget.scan(4 * text.len())?;
    let _held = vm.budget.hold(16 * (1 + text.matches(|c: char| c.is_whitespace()).count()))?;
    let mut lines = letters::lines(&text, false);
    // Jinja looks at the text with one more line break.
    if text.is_empty() || text.ends_with(['\n', '\r', '\x0B', '\x0C', '\u{85}', '\u{2028}', '\u{2029}']) {
        lines.push("");
    }
    let mut out = TextBuilder::new(&vm.budget)?;
    for (i, line) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push_str("\n")?;
        }
        let is_indented = if i == 0 { first } else { blank || !line.is_empty() };
        if is_indented {
            out.push(&indent)?;
        }
        if !line.is_empty() {
            let start = line.as_ptr() as usize - text.as_ptr() as usize;
            out.push_range(&text, start..start + line.len())?;
        }
    }
    out.finish().map(Value::Text)
}

pub fn wordcount(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("wordcount", [])?;
    let text = repr::to_text(vm, &value)?;
    vm.budget.scan(4 * text.len())?;
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    Ok(Value::Int(words.count() as i128))
}

pub fn urlencode(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("urlencode", [])?;
    let pairs = match &value {
        Value::Dict(dict) => Value::View(super::super::value::View::Items, dict.clone()).items(&vm.budget)?,
        Value::List(_) | Value::Tuple(_) | Value::View(..) | Value::Generator(_) => value.items(&vm.budget)?,
        other => return html::quote_url(&repr::to_text(vm, other)?, false).map(Value::Text),
    };
    let mut out = TextBuilder::new(&vm.budget)?;
    for (i, pair) in pairs.iter().enumerate() {
        let pair = pair.items(&vm.budget)?;
        let [key, value] = &pair[..] else { return fail("urlencode needs pairs of keys and values") };
        if i > 0 {
            out.push_str("&")?;
        }
        out.push(&html::quote_url(&repr::to_text(vm, key)?, true)?)?;
        out.push_str("=")?;
        out.push(&html::quote_url(&repr::to_text(vm, value)?, true)?)?;
    }
    out.finish().map(Value::Text)
}

pub fn xmlattr(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [space] = args.bind("xmlattr", ["autospace"])?;
    value.check_defined()?;
    let Value::Dict(dict) = &value else { return fail("xmlattr needs a dict") };
    let mut out = TextBuilder::new(&vm.budget)?;
    for (key, value) in dict.iter().filter(|(_, value)| !matches!(value, Value::None | Value::Undefined(_))) {
        let key = repr::to_text(vm, key)?;
        if key.contains(|c: char| c.is_ascii_whitespace() || c == '\x0B' || "/>=".contains(c)) {
            return fail("Invalid character in attribute name");
        }
        if out.len() > 0 || space.as_ref().is_none_or(Value::is_true) {
            out.push_str(" ")?;
        }
        out.push(&html::escape(&key)?)?;
        out.push_str("=\"")?;
        out.push(&html::escape(&repr::to_text(vm, value)?)?)?;
        out.push_str("\"")?;
    }
    out.finish().map(Value::Text)
}

/// Links for words that begin as an address does: Jinja's other forms of addresses do not occur in prompts.
pub fn urlize(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [limit, nofollow, target, rel] = args.bind("urlize", ["trim_url_limit", "nofollow", "target", "rel"])?;
    let limit = limit.and_then(|limit| limit.as_int()).and_then(|limit| usize::try_from(limit).ok());
    let mut rels = vec!["noopener".to_owned()];
    rels.extend(nofollow.filter(Value::is_true).map(|_| "nofollow".to_owned()));
    if let Some(Value::Text(rel)) = rel {
        rels.extend(rel.split_whitespace().map(str::to_owned));
    }
    rels.sort();
    rels.dedup();
    let mut attributes = format!(" rel=\"{}\"", rels.join(" "));
    if let Some(Value::Text(target)) = target {
        check_text(target.len())?;
        attributes.push_str(&format!(" target=\"{}\"", &*html::escape(&target)?));
    }
    let text = html::escape(&repr::to_text(vm, &value)?)?;
    vm.budget.scan(8 * text.len())?;
    let mut out = TextBuilder::new(&vm.budget)?;
    let mut rest: &str = &text;
    while !rest.is_empty() {
        let is_space = rest.starts_with(super::super::lexer::is_space);
        let end = rest.find(|c| super::super::lexer::is_space(c) != is_space).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let shown = word.trim_end_matches(['.', ',', ')', '\n']);
        let prefix = ["https://", "http://", "www."].into_iter().find(|prefix| shown.starts_with(prefix));
        match prefix.filter(|prefix| has_host(&shown[prefix.len()..])) {
            Some(prefix) => {
                let scheme = if prefix == "www." { "https://" } else { "" };
                let cut = limit.and_then(|limit| shown.char_indices().nth(limit)).map(|(at, _)| at);
                let label = cut.map_or(shown.to_owned(), |at| format!("{}...", &shown[..at]));
                out.push_derived(&format!("<a href=\"{scheme}{shown}\"{attributes}>{label}</a>"), &text)?;
                out.push_derived(&word[shown.len()..], &text)?;
            }
            None => out.push_derived(word, &text)?,
        }
        rest = after;
    }
    out.finish().map(Value::Text)
}

/// Whether an address begins with the name of a host.
fn has_host(address: &str) -> bool {
    let host = &address[..address.find([':', '/', '?', '#']).unwrap_or(address.len())];
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_label = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || "_%-".contains(c));
    host.split('.').all(is_label) && last.len() >= 2 && last.chars().all(|c| c.is_ascii_alphabetic())
}
