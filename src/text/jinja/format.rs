//! `str.format` and the operator `%` of strings.

use super::{
    args::Args,
    attributes,
    budget::{Outcome, fail},
    format_spec::{FormatSpec, number},
    html,
    number::PyNumber,
    repr,
    text::{Text, TextBuilder},
    value::{List, Value, excerpt},
    vm::Vm,
};

/// Characters that a field may be wide.
const MAX_WIDTH: usize = 1 << 20;

/// The value in the form that `!r` or a letter of `%` asks for.
fn converted(vm: &Vm<'_>, value: &Value, conversion: char) -> Outcome<Text> {
    if conversion == 's' {
        return repr::to_text(vm, value);
    }
    let mut out = TextBuilder::new(&vm.budget)?;
    repr::write_repr(vm, &mut out, value, 0)?;
    let text = out.finish()?;
    if conversion != 'a' || text.is_ascii() {
        return Ok(text);
    }
    vm.budget.work(text.len())?;
    let escape = |c: char| match u32::from(c) {
        ..0x80 => c.to_string(),
        code @ ..=0xFF => format!("\\x{code:02x}"),
        code @ ..=0xFFFF => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    text.derived(text.chars().map(escape).collect::<String>())
}

/// Writes a text as its specification lays it out.
fn write_text(out: &mut TextBuilder, text: &Text, spec: &FormatSpec) -> Outcome<()> {
    let is_plain = spec.width == 0 && spec.precision.is_none() && matches!(spec.kind, None | Some('s'));
    if is_plain && spec.grouping.is_none() && spec.align != Some('=') {
        return out.push(text);
    }
    out.budget().scan(text.len() + spec.width)?;
    let _held = out.budget().hold(2 * (text.len() + spec.width))?;
    out.push_derived(&spec.text(text)?, text)
}

/// `format % values`
pub fn percent(vm: &mut Vm<'_>, format: &Text, values: &Value) -> Outcome<Text> {
    let mut out = TextBuilder::new(&vm.budget)?;
    let single;
    let (items, mapping) = match values {
        Value::Tuple(items) => (&items[..], None),
        Value::Dict(dict) => (&[][..], Some(dict)),
        other => {
            single = [other.clone()];
            (&single[..], None)
        }
    };
    let mut directives = Directives { format, at: 0, items, used: 0 };
    while let Some(found) = format[directives.at..].find('%') {
        let start = directives.at + found;
        out.push_range(format, directives.at..start)?;
        directives.at = start + 1;
        let key = directives.key()?;
        let spec = directives.spec()?;
        if spec.kind == Some('%') {
            out.push_str("%")?;
            continue;
        }
        let value = match (key, mapping) {
            (Some(key), Some(dict)) => match dict.get(&vm.budget, &Value::Text(format.slice(key.clone())?))? {
                Some(value) => value.clone(),
                None => return fail(format!("KeyError: '{}'", excerpt(&format[key]))),
            },
            (Some(_), None) => return fail("format requires a mapping"),
            (None, Some(_)) if directives.used == 0 => {
                directives.used += 1;
                values.clone()
            }
            (None, _) => directives.next()?,
        };
        write_percent(vm, &mut out, (&value, &spec), format.is_markup())?;
    }
    out.push_range(format, directives.at..format.len())?;
    if directives.used < items.len() {
        return fail("not all arguments converted during string formatting");
    }
    out.finish()?.with_markup(format.is_markup())
}

fn write_percent(
    vm: &Vm<'_>,
    out: &mut TextBuilder,
    (value, spec): (&Value, &FormatSpec),
    is_markup: bool,
) -> Outcome<()> {
    let kind = spec.kind.unwrap_or('s');
    match kind {
        's' | 'r' | 'a' => {
            let text = converted(vm, value, kind)?;
            let text = if is_markup { html::escape(&text)? } else { text };
            let align = spec.align.or(Some('>'));
            write_text(out, &text, &FormatSpec { kind: None, align, ..*spec })
        }
        'c' => match value {
            Value::Text(text) if text.char_count()? == 1 => {
                write_text(out, text, &FormatSpec { kind: None, align: spec.align.or(Some('>')), ..*spec })
            }
            _ => match PyNumber::of(value) {
                Some(number @ PyNumber::Int(_)) => out.push_str(&spec.number(number)?),
                _ => fail("%c requires int or char"),
            },
        },
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            let number = match (PyNumber::of(value), kind) {
                (Some(PyNumber::Int(number)), _) => number,
                (Some(PyNumber::Float(number)), 'd' | 'i' | 'u') if number.is_finite() => number as i128,
                _ => return fail(format!("%{kind} format: a real number is required, not {}", value.type_name())),
            };
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            out.push_str(&int_digits(&FormatSpec { kind: Some(kind), ..*spec }, number)?)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => match PyNumber::of(value) {
            Some(number) => out.push_str(&spec.number(PyNumber::Float(number.float()))?),
            None => fail(format!("must be real number, not {}", value.type_name())),
        },
        other => fail(format!("unsupported format character '{other}'")),
    }
}

/// A whole number with at least as many digits as the precision says.
fn int_digits(spec: &FormatSpec, number: i128) -> Outcome<String> {
    let Some(digits) = spec.precision else { return spec.number(PyNumber::Int(number)) };
    let plain = FormatSpec { width: 0, precision: None, ..*spec };
    let sign = usize::from(number < 0 || spec.sign != '-');
    let written =
        FormatSpec { fill: '0', align: Some('='), width: digits + sign, ..plain }.number(PyNumber::Int(number))?;
    Ok(match spec.width.saturating_sub(written.len()) {
        0 => written,
        missing if spec.align == Some('<') => written + &" ".repeat(missing),
        missing => " ".repeat(missing) + &written,
    })
}

/// The directives of a `%` format.
struct Directives<'a> {
    format: &'a Text,
    at: usize,
    items: &'a [Value],
    used: usize,
}

impl Directives<'_> {
    fn next(&mut self) -> Outcome<Value> {
        let Some(item) = self.items.get(self.used) else { return fail("not enough arguments for format string") };
        self.used += 1;
        Ok(item.clone())
    }

    /// The place of the key in `%(key)s`.
    fn key(&mut self) -> Outcome<Option<std::ops::Range<usize>>> {
        let Some(rest) = self.format[self.at..].strip_prefix('(') else { return Ok(None) };
        let mut open = 1;
        for (at, c) in rest.char_indices() {
            open += i32::from(c == '(') - i32::from(c == ')');
            if open == 0 {
                let start = self.at + 1;
                self.at = start + at + 1;
                return Ok(Some(start..start + at));
            }
        }
        fail("incomplete format key")
    }

    fn spec(&mut self) -> Outcome<FormatSpec> {
        let mut spec = FormatSpec::PLAIN;
        let format = self.format.clone();
        while let Some(flag) = format[self.at..].chars().next() {
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = '+',
                ' ' if spec.sign == '-' => spec.sign = ' ',
                ' ' => {}
                '#' => spec.alternate = true,
                '0' => spec.fill = '0',
                _ => break,
            }
            self.at += 1;
        }
        let width = self.number()?;
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = width.unsigned_abs() as usize;
        if format[self.at..].starts_with('.') {
            self.at += 1;
            spec.precision = Some(usize::try_from(self.number()?).unwrap_or(0));
        }
        let rest = format[self.at..].trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = rest.chars().next() else { return fail("incomplete format") };
        self.at = format.len() - rest.len() + kind.len_utf8();
        spec.kind = Some(kind);
        match (spec.fill, spec.align, kind) {
            ('0', Some(_), _) | ('0', None, 's' | 'r' | 'a' | 'c' | '%') => spec.fill = ' ',
            ('0', None, _) => spec.align = Some('='),
            _ => {}
        }
        Ok(spec)
    }

    /// A width or precision, which may be one of the items.
    fn number(&mut self) -> Outcome<i64> {
        if !self.format[self.at..].starts_with('*') {
            let (found, rest) = number(&self.format[self.at..], MAX_WIDTH)?;
            self.at = self.format.len() - rest.len();
            return Ok(found as i64);
        }
        self.at += 1;
        match self.next()?.as_int() {
            Some(number) if number.unsigned_abs() <= MAX_WIDTH as u128 => Ok(number as i64),
            Some(_) => fail(format!("a width or precision is more than {MAX_WIDTH}")),
            None => fail("* wants int"),
        }
    }
}

/// `format.format(…)`
pub fn format(vm: &mut Vm<'_>, format: &Text, args: Args) -> Outcome<Text> {
    let positional = List::new(&vm.budget, args.positional)?;
    let mut fields = FormatFields { format, positional, keywords: args.keywords, used: 0 };
    let mut out = TextBuilder::new(&vm.budget)?;
    fields.write(vm, &mut out, 0..format.len(), 2)?;
    out.finish()?.with_markup(format.is_markup())
}

/// The fields of a format and their arguments.
struct FormatFields<'a> {
    format: &'a Text,
    positional: List,
    keywords: Vec<(Text, Value)>,
    /// How many items fields without a name have taken.
    used: usize,
}

impl FormatFields<'_> {
    /// Writes a part of the format. Specifications may have fields in them, which have none.
    fn write(
        &mut self,
        vm: &mut Vm<'_>,
        out: &mut TextBuilder,
        part: std::ops::Range<usize>,
        levels: usize,
    ) -> Outcome<()> {
        let format = self.format;
        let mut at = part.start;
        while let Some(found) = format[at..part.end].find(['{', '}']) {
            let start = at + found;
            out.push_range(format, at..start)?;
            let bracket = &format[start..=start];
            if format[start + 1..part.end].starts_with(bracket) {
                out.push_range(format, start..start + 1)?;
                at = start + 2;
                continue;
            }
            if bracket == "}" {
                return fail("Single '}' encountered in format string");
            }
            if levels == 0 {
                return fail("Max string recursion exceeded");
            }
            let end = self.field_end(start + 1, part.end)?;
            self.write_field(vm, out, start + 1..end, levels)?;
            at = end + 1;
        }
        out.push_range(format, at..part.end)
    }

    /// Where the field that begins at `start` ends.
    fn field_end(&self, start: usize, end: usize) -> Outcome<usize> {
        let mut open = 1;
        for (at, c) in self.format[start..end].char_indices() {
            open += i32::from(c == '{') - i32::from(c == '}');
            if open == 0 {
                return Ok(start + at);
            }
        }
        fail("expected '}' before end of string")
    }

    fn write_field(
        &mut self,
        vm: &mut Vm<'_>,
        out: &mut TextBuilder,
        field: std::ops::Range<usize>,
        levels: usize,
    ) -> Outcome<()> {
        let text = &self.format[field.clone()];
        let name_end = name_end(text);
        let (name, rest) = text.split_at(name_end);
        let (conversion, rest) = match rest.strip_prefix('!') {
            Some(rest) => (rest.chars().next().filter(|c| "rsa".contains(*c)), rest.get(1..).unwrap_or_default()),
            None => (None, rest),
        };
        if text[name_end..].starts_with('!') && (conversion.is_none() || !rest.is_empty() && !rest.starts_with(':')) {
            return fail("expected ':' after conversion specifier");
        }
        let value = self.value(vm, name)?;
        let spec_start = field.end - rest.strip_prefix(':').unwrap_or(rest).len();
        let mut spec = TextBuilder::new(&vm.budget)?;
        self.write(vm, &mut spec, spec_start..field.end, levels - 1)?;
        let spec = spec.finish()?;
        let value = match conversion {
            Some(conversion) => Value::Text(converted(vm, &value, conversion)?),
            None => value,
        };
        write_formatted(vm, out, &value, &spec)
    }

    /// The value of a field's name, such as `0.name[key]`.
    fn value(&mut self, vm: &mut Vm<'_>, name: &str) -> Outcome<Value> {
        let first_len = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(first_len);
        let index = if first.is_empty() {
            self.used += 1;
            Some(self.used - 1)
        } else {
            first.parse().ok()
        };
        let mut value = match index {
            Some(index) => match self.positional.get(index) {
                Some(value) => value.clone(),
                None => return fail("Replacement index out of range for positional args tuple"),
            },
            None => match self.keywords.iter().find(|(found, _)| **found == *first) {
                Some((_, value)) => value.clone(),
                None => return fail(format!("KeyError: '{}'", excerpt(first))),
            },
        };
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let len = after.find(['.', '[']).unwrap_or(after.len());
                let name = Text::new(&vm.budget, &after[..len])?;
                value = attributes::attribute(vm, &value, &name)?;
                rest = &after[len..];
            } else {
                let Some((key, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
                    return fail("Missing ']' in format string");
                };
                let key = match key.parse() {
                    Ok(index) => Value::Int(index),
                    Err(_) => vm.text(key)?,
                };
                value = attributes::item(vm, &value, &key)?;
                rest = after;
            }
        }
        Ok(value)
    }
}

/// Where a field's name ends. A key in brackets may hold anything.
fn name_end(field: &str) -> usize {
    let mut in_brackets = false;
    for (at, c) in field.char_indices() {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            ':' | '!' if !in_brackets => return at,
            _ => {}
        }
    }
    field.len()
}

fn write_formatted(vm: &Vm<'_>, out: &mut TextBuilder, value: &Value, spec: &Text) -> Outcome<()> {
    let parsed = FormatSpec::parse(spec)?;
    match (value, PyNumber::of(value)) {
        (Value::Text(text), _) => write_text(out, text, &parsed),
        (Value::Bool(_), _) if spec.is_empty() => repr::write_str(vm, out, value),
        (_, Some(number)) => {
            vm.budget.scan(parsed.width)?;
            let _held = vm.budget.hold(4 * parsed.width)?;
            out.push_str(&parsed.number(number)?)
        }
        _ if spec.is_empty() => repr::write_str(vm, out, value),
        _ => fail(format!("unsupported format string passed to {}.__format__", value.type_name())),
    }
}
