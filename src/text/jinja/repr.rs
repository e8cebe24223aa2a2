//! How values are written: `str` and `repr` of Python.

use super::{
    budget::{MAX_VALUE_DEPTH, Outcome, fail},
    loops::LoopState,
    number::float_repr,
    text::{Text, TextBuilder},
    value::{Value, View, excerpt},
    vm::Vm,
};

/// Writes `str(value)`. Anything but texts and numbers counts as a value's: `None` and `[]` have no other origin.
pub fn write_str(vm: &Vm<'_>, out: &mut TextBuilder, value: &Value) -> Outcome<()> {
    match value {
        Value::Text(text) => out.push(text),
        Value::Undefined(_) => Ok(()),
        Value::Int(_) | Value::Float(_) => write_repr(vm, out, value, 0),
        other => {
            let mut written = TextBuilder::new(&vm.budget)?;
            write_repr(vm, &mut written, other, 0)?;
            out.push(&written.finish_as_value()?)
        }
    }
}

/// `str(value)`
pub fn to_text(vm: &Vm<'_>, value: &Value) -> Outcome<Text> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        other => {
            let mut out = TextBuilder::new(&vm.budget)?;
            write_str(vm, &mut out, other)?;
            out.finish()
        }
    }
}

/// Writes `repr(value)`.
pub fn write_repr(vm: &Vm<'_>, out: &mut TextBuilder, value: &Value, depth: usize) -> Outcome<()> {
    if depth > MAX_VALUE_DEPTH {
        return fail("a value is nested too deep to be written");
    }
    vm.budget.work(1)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&float_repr(*number)),
        Value::Text(text) if text.is_markup() => {
            out.push_str("Markup(")?;
            write_quoted(out, text)?;
            out.push_str(")")
        }
        Value::Text(text) => write_quoted(out, text),
        Value::List(items) => write_items(vm, out, items, ["[", "]"], depth),
        Value::Tuple(items) if items.len() == 1 => write_items(vm, out, items, ["(", ",)"], depth),
        Value::Tuple(items) => write_items(vm, out, items, ["(", ")"], depth),
        Value::Dict(dict) => write_entries(vm, out, dict, depth),
        Value::Range(steps) if steps.step == 1 => out.push_str(&format!("range({}, {})", steps.start, steps.stop)),
        Value::Range(steps) => out.push_str(&format!("range({}, {}, {})", steps.start, steps.stop, steps.step)),
        Value::View(View::Keys, _) => write_view(vm, out, value, ["dict_keys([", "])"], depth),
        Value::View(View::Values, _) => write_view(vm, out, value, ["dict_values([", "])"], depth),
        Value::View(View::Items, _) => write_view(vm, out, value, ["dict_items([", "])"], depth),
        Value::Namespace(number) => {
            out.push_str("<Namespace {")?;
            for (i, (name, value)) in vm.namespace(*number).iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " })?;
                write_quoted(out, name)?;
                out.push_str(": ")?;
                write_repr(vm, out, value, depth + 1)?;
            }
            out.push_str("}>")
        }
        other => out.push_str(&object_repr(vm, other)),
    }
}

/// Python's default representation of objects.
fn object_repr(vm: &Vm<'_>, value: &Value) -> String {
    match value {
        Value::Macro(called) => match vm.template.macros.get(called.index).and_then(|found| found.name) {
            Some(name) => format!("<Macro '{}'>", excerpt(&vm.template.names[name])),
            None => "<Macro anonymous>".into(),
        },
        Value::Loop(state) => describe(state),
        Value::Method(method) => {
            format!("<built-in method {} of {} object>", excerpt(&method.1), method.0.type_name())
        }
        other => format!("<{} object>", other.type_name()),
    }
}

fn describe(state: &LoopState) -> String {
    Vm::describe_loop(state)
}

fn write_view(vm: &Vm<'_>, out: &mut TextBuilder, view: &Value, around: [&str; 2], depth: usize) -> Outcome<()> {
    let items = view.items(&vm.budget)?;
    write_items(vm, out, &items, around, depth)
}

fn write_items(vm: &Vm<'_>, out: &mut TextBuilder, items: &[Value], around: [&str; 2], depth: usize) -> Outcome<()> {
    out.push_str(around[0])?;
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { ", " })?;
        write_repr(vm, out, item, depth + 1)?;
    }
    out.push_str(around[1])
}

fn write_entries(vm: &Vm<'_>, out: &mut TextBuilder, entries: &[(Value, Value)], depth: usize) -> Outcome<()> {
    out.push_str("{")?;
    for (i, (key, value)) in entries.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { ", " })?;
        write_repr(vm, out, key, depth + 1)?;
        out.push_str(": ")?;
        write_repr(vm, out, value, depth + 1)?;
    }
    out.push_str("}")
}

/// Writes `repr` of a string.
pub fn write_quoted(out: &mut TextBuilder, text: &Text) -> Outcome<()> {
    out.budget().scan(4 * text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let quotes = if quote == '"' { "\"" } else { "'" };
    out.push_str(quotes)?;
    let mut from = 0;
    for (at, c) in text.char_indices() {
        if c != '\\' && c != quote && is_printable(c) {
            continue;
        }
        out.push_range(text, from..at)?;
        from = at + c.len_utf8();
        let escaped = match c {
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            '\\' => "\\\\".to_owned(),
            _ if c == quote => format!("\\{c}"),
            ..='\u{FF}' => format!("\\x{:02x}", u32::from(c)),
            ..='\u{FFFF}' => format!("\\u{:04x}", u32::from(c)),
            _ => format!("\\U{:08x}", u32::from(c)),
        };
        out.push_derived(&escaped, text)?;
    }
    out.push_range(text, from..text.len())?;
    out.push_str(quotes)
}

/// `str.isprintable` of a character.
pub fn is_printable(c: char) -> bool {
    // Rust leaves the same characters as they are, combining ones behind another.
    (' '..='~').contains(&c) || !c.is_ascii() && ['a', c].iter().collect::<String>().escape_debug().count() == 2
}
