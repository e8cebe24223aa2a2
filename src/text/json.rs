//! How templates write JSON.

use std::fmt::Write as _;

use minijinja::{Error, Value, value::ValueKind};

use super::{
    bounds::{MAX_DEPTH, check_bytes, failed},
    python::{float_repr, indentation, is_mark, named, to_str},
};

/// Options of `json.dumps`.
#[derive(Default)]
struct Json {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `json.dumps` with transformers' defaults: minijinja's own filter escapes for HTML.
pub fn to_json(args: &[Value]) -> Result<String, Error> {
    let [value, ensure_ascii, indent, separators, sort_keys] =
        named(args, ["x", "ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indentation(&indent)).transpose()?;
    let (item, key) = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => (to_str(&separators.get_item_by_index(0)?)?, to_str(&separators.get_item_by_index(1)?)?),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let json = Json {
        ensure_ascii: is_true(ensure_ascii),
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: is_true(sort_keys),
    };
    let mut out = String::new();
    json.write(&mut out, &value.unwrap_or_default(), 0)?;
    Ok(out)
}

impl Json {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(failed("a value is nested too deep to be written"));
        }
        check_bytes(out.len() + value.as_str().map_or(0, str::len))?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&Self::number(value)?),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut is_empty = true;
                for (i, item) in value.try_iter()?.enumerate() {
                    self.separate(out, i, depth + 1);
                    self.write(out, &item, depth + 1)?;
                    is_empty = false;
                }
                self.close(out, ']', is_empty, depth);
            }
            ValueKind::Map => {
                out.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for (i, key) in keys.iter().enumerate() {
                    self.separate(out, i, depth + 1);
                    self.write_string(out, &Self::key(key)?)?;
                    out.push_str(&self.key_separator);
                    self.write(out, &value.get_item(key)?, depth + 1)?;
                }
                self.close(out, '}', keys.is_empty(), depth);
            }
            kind => return Err(failed(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn number(value: &Value) -> Result<String, Error> {
        if value.is_integer() {
            return Ok(value.to_string());
        }
        Ok(match f64::try_from(value.clone())? {
            number if number.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            number => float_repr(number),
        })
    }

    fn key(key: &Value) -> Result<String, Error> {
        match key.kind() {
            ValueKind::String => to_str(key),
            ValueKind::None => Ok("null".into()),
            ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
            ValueKind::Number => Self::number(key),
            kind => Err(failed(format!("keys must be str, int, float, bool or None, not {kind}"))),
        }
    }

    fn write_string(&self, out: &mut String, text: &str) -> Result<(), Error> {
        let quoted = serde_json::to_string(text).map_err(|error| failed(error.to_string()))?;
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return Ok(());
        }
        for c in quoted.chars() {
            if (' '..='~').contains(&c) || is_mark(c) {
                out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
        Ok(())
    }

    /// What stands before an item.
    fn separate(&self, out: &mut String, index: usize, depth: usize) {
        if index > 0 {
            out.push_str(&self.item_separator);
        }
        self.new_line(out, depth);
    }

    fn close(&self, out: &mut String, bracket: char, is_empty: bool, depth: usize) {
        if !is_empty {
            self.new_line(out, depth);
        }
        out.push(bracket);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }
}
