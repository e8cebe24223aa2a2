//! JSON: the output of `tojson`, and the values that templates get.

use serde_json::{Map, Value as Json};

use super::{
    args::Args,
    budget::{MAX_VALUE_DEPTH, Outcome, RenderBudget, fail},
    compare,
    dict::DictBuilder,
    number::float_repr,
    repr,
    text::{Text, TextBuilder},
    value::Value,
    vm::Vm,
};

/// Bytes that an indent may have.
const MAX_INDENT: usize = 256;

/// How many bytes of values a JSON value holds, about.
pub fn size(json: &Json) -> usize {
    32 + match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(size).sum(),
        Json::Object(fields) => fields.iter().map(|(name, field)| 64 + name.len() + size(field)).sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

/// A value from outside.
pub fn value(budget: &RenderBudget, json: &Json, depth: usize) -> Outcome<Value> {
    if depth > MAX_VALUE_DEPTH {
        return fail(format!("a value is nested more than {MAX_VALUE_DEPTH} deep"));
    }
    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i128() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::Text(Text::from_value(budget, &**text)?),
        Json::Array(items) => {
            let items = items.iter().map(|item| value(budget, item, depth + 1)).collect::<Outcome<_>>()?;
            Value::list(budget, items)?
        }
        Json::Object(fields) => object(budget, fields, depth)?,
    })
}

fn object(budget: &RenderBudget, fields: &Map<String, Json>, depth: usize) -> Outcome<Value> {
    let mut dict = DictBuilder::new(budget)?;
    for (name, field) in fields {
        let field = match field {
            // A role that is known is a word of templates.
            Json::String(role) if name == "role" && crate::Role::is_known(role) => Value::text(budget, &**role)?,
            other => value(budget, other, depth + 1)?,
        };
        dict.insert(Value::Text(Text::from_value(budget, &**name)?), field)?;
    }
    dict.finish().map(Value::Dict)
}

/// Options of `json.dumps`.
struct JsonOptions {
    ensure_ascii: bool,
    indent: Option<Text>,
    item_separator: Text,
    key_separator: Text,
    sort_keys: bool,
}

/// `json.dumps` with the defaults of transformers: Jinja's own filter escapes for HTML.
pub fn to_json(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [ensure_ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(indent) => Some(indentation(vm, &indent)?),
    };
    let separators = match separators {
        None | Some(Value::None) => None,
        Some(separators) => Some(separators.items(&vm.budget)?),
    };
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([Value::Text(item), Value::Text(key)]) => (item.clone(), key.clone()),
        Some(_) => return fail("separators must be two strings"),
        None => {
            let item = if indent.is_some() { "," } else { ", " };
            (Text::new(&vm.budget, item)?, Text::new(&vm.budget, ": ")?)
        }
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ensure_ascii, sort_keys) = (is_true(ensure_ascii), is_true(sort_keys));
    let options = JsonOptions { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut out = TextBuilder::new(&vm.budget)?;
    options.write(vm, &mut out, &value, 0)?;
    // Values other than text track no origin: `null` and `[]` count as the value's.
    out.finish_as_value().map(Value::Text)
}

/// The indent of a line: a text, or as many spaces.
pub fn indentation(vm: &Vm<'_>, width: &Value) -> Outcome<Text> {
    match width {
        Value::Text(text) if text.len() <= MAX_INDENT => Ok(text.clone()),
        Value::Text(text) => fail(format!("an indent of {} bytes is longer than {MAX_INDENT}", text.len())),
        other => match other.as_int() {
            Some(width) if width <= MAX_INDENT as i128 => Text::new(&vm.budget, " ".repeat(width.max(0) as usize)),
            Some(width) => fail(format!("an indent of {width} is more than {MAX_INDENT}")),
            None => fail(format!("an indent cannot be of type '{}'", other.type_name())),
        },
    }
}

impl JsonOptions {
    fn write(&self, vm: &Vm<'_>, out: &mut TextBuilder, value: &Value, depth: usize) -> Outcome<()> {
        vm.budget.work(1)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(_) | Value::Float(_) => out.push_str(&number(value)),
            Value::Text(text) => self.write_string(out, text),
            Value::List(items) | Value::Tuple(items) => {
                out.push_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    self.separate(out, i, depth + 1)?;
                    self.write(vm, out, item, depth + 1)?;
                }
                self.close(out, "]", items.is_empty(), depth)
            }
            Value::Dict(dict) => {
                out.push_str("{")?;
                let mut entries = Vec::new();
                for (key, value) in dict.iter() {
                    entries.push((self.key(vm, key)?, value));
                }
                if self.sort_keys {
                    entries = sorted(vm, dict)?.into_iter().map(|at| entries[at].clone()).collect();
                }
                for (i, (key, value)) in entries.iter().enumerate() {
                    self.separate(out, i, depth + 1)?;
                    self.write_string(out, key)?;
                    out.push(&self.key_separator)?;
                    self.write(vm, out, value, depth + 1)?;
                }
                self.close(out, "}", entries.is_empty(), depth)
            }
            other => fail(format!("Object of type {} is not JSON serializable", other.type_name())),
        }
    }

    fn key(&self, vm: &Vm<'_>, key: &Value) -> Outcome<Text> {
        match key {
            Value::Text(text) => Ok(text.clone()),
            Value::None => Text::new(&vm.budget, "null"),
            Value::Bool(value) => Text::new(&vm.budget, if *value { "true" } else { "false" }),
            Value::Int(_) | Value::Float(_) => Text::new(&vm.budget, number(key)),
            other => fail(format!("keys must be str, int, float, bool or None, not {}", other.type_name())),
        }
    }

    fn write_string(&self, out: &mut TextBuilder, text: &Text) -> Outcome<()> {
        out.push_str("\"")?;
        let mut from = 0;
        for (at, c) in text.char_indices() {
            let escaped = match c {
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\n' => "\\n".to_owned(),
                '\r' => "\\r".to_owned(),
                '\t' => "\\t".to_owned(),
                '\x08' => "\\b".to_owned(),
                '\x0C' => "\\f".to_owned(),
                ..' ' => format!("\\u{:04x}", u32::from(c)),
                _ if self.ensure_ascii && !(' '..='~').contains(&c) => {
                    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }
                _ => continue,
            };
            out.push_range(text, from..at)?;
            from = at + c.len_utf8();
            out.push_derived(&escaped, text)?;
        }
        out.push_range(text, from..text.len())?;
        out.push_str("\"")
    }

    /// Writes the separator before an item.
    fn separate(&self, out: &mut TextBuilder, index: usize, depth: usize) -> Outcome<()> {
        if index > 0 {
            out.push(&self.item_separator)?;
        }
        self.new_line(out, depth)
    }

    fn close(&self, out: &mut TextBuilder, bracket: &str, is_empty: bool, depth: usize) -> Outcome<()> {
        if !is_empty {
            self.new_line(out, depth)?;
        }
        out.push_str(bracket)
    }

    fn new_line(&self, out: &mut TextBuilder, depth: usize) -> Outcome<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.push_str("\n")?;
        (0..depth).try_for_each(|_| out.push(indent))
    }
}

fn number(value: &Value) -> String {
    match value {
        Value::Float(number) if number.is_nan() => "NaN".into(),
        Value::Float(f64::INFINITY) => "Infinity".into(),
        Value::Float(f64::NEG_INFINITY) => "-Infinity".into(),
        Value::Float(number) => float_repr(*number),
        other => other.as_int().unwrap_or_default().to_string(),
    }
}

/// The places of a dict's entries in the order of their keys.
fn sorted(vm: &Vm<'_>, entries: &[(Value, Value)]) -> Outcome<Vec<usize>> {
    let keyed = entries.iter().enumerate().map(|(at, (key, _))| (key.clone(), Value::Int(at as i128)));
    let sorted = compare::sort(&vm.budget, keyed.collect(), false)?;
    Ok(sorted.iter().filter_map(|at| at.as_int().map(|at| at as usize)).collect())
}

/// `pprint.pformat` of a value that fits on a line: dicts come sorted.
pub fn pretty(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("pprint", [])?;
    let mut out = TextBuilder::new(&vm.budget)?;
    write_pretty(vm, &mut out, &value, 0)?;
    out.finish().map(Value::Text)
}

/// Characters that a line of `pprint` may have.
const PRETTY_WIDTH: usize = 80;

fn write_pretty(vm: &Vm<'_>, out: &mut TextBuilder, value: &Value, column: usize) -> Outcome<()> {
    let value = sorted_dicts(vm, value)?;
    let mut line = TextBuilder::new(&vm.budget)?;
    repr::write_repr(vm, &mut line, &value, 0)?;
    let line = line.finish()?;
    if line.char_count()? + column < PRETTY_WIDTH {
        return out.push(&line);
    }
    let next = |out: &mut TextBuilder, i: usize| match i {
        0 => Ok(()),
        _ => out.push_str(&format!(",\n{}", " ".repeat(column + 1))),
    };
    match &value {
        Value::List(items) => {
            out.push_str("[")?;
            for (i, item) in items.iter().enumerate() {
                next(out, i)?;
                write_pretty(vm, out, item, column + 1)?;
            }
            out.push_str("]")
        }
        Value::Tuple(items) => {
            out.push_str("(")?;
            for (i, item) in items.iter().enumerate() {
                next(out, i)?;
                write_pretty(vm, out, item, column + 1)?;
            }
            out.push_str(if items.len() == 1 { ",)" } else { ")" })
        }
        Value::Dict(dict) => {
            out.push_str("{")?;
            for (i, (key, value)) in dict.iter().enumerate() {
                next(out, i)?;
                let start = out.len();
                repr::write_repr(vm, out, key, 0)?;
                out.push_str(": ")?;
                let width = out.len() - start;
                write_pretty(vm, out, value, column + 1 + width)?;
            }
            out.push_str("}")
        }
        _ => out.push(&line),
    }
}

/// A value of which all dicts are in the order of their keys.
fn sorted_dicts(vm: &Vm<'_>, value: &Value) -> Outcome<Value> {
    vm.budget.work(1)?;
    let all = |items: &[Value]| items.iter().map(|item| sorted_dicts(vm, item)).collect::<Outcome<Vec<_>>>();
    match value {
        Value::List(items) => Value::list(&vm.budget, all(items)?),
        Value::Tuple(items) => Value::tuple(&vm.budget, all(items)?),
        Value::Dict(entries) => {
            let mut dict = DictBuilder::new(&vm.budget)?;
            let order = sorted(vm, entries).unwrap_or_else(|_| (0..entries.len()).collect());
            for at in order {
                dict.insert(entries[at].0.clone(), sorted_dicts(vm, &entries[at].1)?)?;
            }
            dict.finish().map(Value::Dict)
        }
        other => Ok(other.clone()),
    }
}
