use std::{fmt::Write as _, io, path::Path, sync::LazyLock, thread};

use chrono::NaiveDateTime;
use minijinja::{
    AutoEscape, Environment, ErrorKind, Output, State, Value, filters,
    value::{Rest, ValueKind},
};
use regex::{Captures, Regex};
use serde_json::Map;

use super::{bounds, json, python};
use crate::{Error, Result};

/// A model's way to write a conversation down, in Jinja as transformers runs it.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    /// The strings in its code, which it may look for in texts.
    pub literals: Vec<String>,
}

/// A template, and perhaps another one for conversations with tools.
pub struct TemplateSource {
    pub default: String,
    pub tool_use: Option<String>,
}

impl From<String> for TemplateSource {
    fn from(default: String) -> Self {
        Self { default, tool_use: None }
    }
}

const NAME: &str = "chat_template";
const TOOL_USE: &str = "chat_template tool_use";
/// Steps a template may take.
const FUEL: u64 = 20_000_000;
/// Bytes a template may be long. Those of models have less than half of it.
const MAX_SOURCE_BYTES: usize = 128 << 10;
/// Operators a template may have; those of models have less than a hundred. For each of a chain minijinja goes down the rest of
/// the chain, to see whether it is constant.
const MAX_OPERATORS: usize = 8192;
/// Stack that a template may need to be compiled: what is nested is compiled recursively, and a sign is enough for a
/// level. Minus signs need between 256 and 512 bytes each.
const STACK_BYTES: usize = 1 << 20;
const STACK_PER_BYTE: usize = 2 << 10;

impl ChatTemplate {
    /// Parses a template. `path` is where it came from, `bos_token` and `eos_token` are the texts
    /// it may use.
    pub fn new(path: &Path, source: impl Into<TemplateSource>, bos_token: String, eos_token: String) -> Result<Self> {
        let TemplateSource { default, tool_use } = source.into();
        let (mut environment, mut literals) = (environment(), Vec::new());
        for (name, source) in [(NAME, Some(default)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            if source.len() > MAX_SOURCE_BYTES {
                let reason = format!("chat_template has {} bytes, more than {MAX_SOURCE_BYTES}", source.len());
                return Err(Error::model(path, reason));
            }
            let operators = count_operators(&source);
            if operators > MAX_OPERATORS {
                let reason = format!("chat_template has {operators} operators, more than {MAX_OPERATORS}");
                return Err(Error::model(path, reason));
            }
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            literals.extend(literals_of(&source));
            compile(&mut environment, name, without_generation_tags(&source))?
                .map_err(|error| Error::model_because(path, "chat_template is not a valid template", error))?;
        }
        Ok(Self { environment, bos_token, eos_token, literals })
    }

    /// Writes down what `context` holds: `messages` and whatever else the template reads.
    pub fn render(&self, mut context: Map<String, serde_json::Value>) -> Result<String> {
        let failed = |error: minijinja::Error| Error::ChatTemplate {
            reason: error.detail().map_or_else(|| error.to_string(), str::to_owned),
        };
        let with_tools = context.get("tools").is_some_and(|tools| !tools.is_null());
        let template = match self.environment.get_template(TOOL_USE) {
            Ok(template) if with_tools => template,
            _ => self.environment.get_template(NAME).map_err(failed)?,
        };
        context.insert("bos_token".into(), self.bos_token.as_str().into());
        context.insert("eos_token".into(), self.eos_token.as_str().into());
        for name in ["tools", "documents"] {
            context.entry(name).or_insert_with(|| serde_json::Value::Null);
        }
        let mut out = Limited(Vec::new());
        template.render_captured_to(context, &mut out).map_err(failed)?;
        String::from_utf8(out.0).map_err(|_| Error::ChatTemplate { reason: "it wrote no UTF-8".into() })
    }

    /// The same template, for which it is always `now`.
    #[cfg(test)]
    pub fn at(mut self, now: NaiveDateTime) -> Self {
        self.environment.add_function("strftime_now", move |format: String| strftime(now, &format));
        self
    }
}

/// Compiles a template on a thread with stack enough for it: an overflow would end the process.
fn compile(
    environment: &mut Environment<'static>,
    name: &'static str,
    source: String,
) -> Result<Result<(), minijinja::Error>> {
    let stack = STACK_BYTES + source.len() * STACK_PER_BYTE;
    let failed = |reason: String| Error::internal(format!("a chat template could not be compiled: {reason}"));
    thread::scope(|scope| {
        let compiles = thread::Builder::new().name("tokenflow compile a template".into()).stack_size(stack);
        let compiles = compiles.spawn_scoped(scope, || environment.add_template_owned(name, source));
        compiles.map_err(|error| failed(error.to_string()))?.join().map_err(|_| failed("a panic ended it".into()))
    })
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(write_value);
    environment.set_unknown_method_callback(python::call_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: String| strftime(chrono::Local::now().naive_local(), &format));
    environment.add_filter("tojson", |args: Rest<Value>| json::to_json(&args));
    environment.add_filter("string", |value: Value| python::to_str(&value));
    environment.add_filter("upper", |value: Value| Ok::<_, minijinja::Error>(python::to_str(&value)?.to_uppercase()));
    environment.add_filter("lower", |value: Value| Ok::<_, minijinja::Error>(python::to_str(&value)?.to_lowercase()));
    environment
        .add_filter("title", |value: Value| Ok::<_, minijinja::Error>(python::title_words(&python::to_str(&value)?)));
    environment.add_filter("replace", replace);
    environment.add_filter("int", |args: Rest<Value>| python::int(&args));
    environment.add_filter("float", |args: Rest<Value>| python::float(&args));
    environment.add_filter("first", |value: Value| value.try_iter().map(|mut items| items.next().unwrap_or_default()));
    environment.add_filter("sum", sum);
    environment.add_filter("indent", |args: Rest<Value>| python::indent(&args));
    environment.add_filter("items", items);
    environment.add_filter("trim", trim);
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    bound(&mut environment);
    environment.add_test("sequence", |value: Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain)
    });
    environment.add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("number", |value: Value| matches!(value.kind(), ValueKind::Bool | ValueKind::Number));
    environment
}

/// Puts bounds to what of minijinja would take as much memory as a template names a number. Its operators have none.
fn bound(environment: &mut Environment<'static>) {
    // It writes down all that there is, and Jinja has no such function.
    environment.remove_global("debug");
    for (name, filter) in [
        ("list", Value::from_function(filters::list)),
        ("sort", Value::from_function(filters::sort)),
        ("reverse", Value::from_function(filters::reverse)),
        ("unique", Value::from_function(filters::unique)),
        ("groupby", Value::from_function(filters::groupby)),
        ("map", Value::from_function(filters::map)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("last", Value::from_function(filters::last)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("format", Value::from_function(filters::format)),
        ("pprint", Value::from_function(filters::pprint)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
    ] {
        environment.add_filter(name, move |state: &State<'_, '_>, args: Rest<Value>| {
            match (name, &args[..]) {
                ("format", [format, args @ ..]) => python::check_format(&python::to_str(format)?, args)?,
                ("batch" | "slice", [list, count, ..]) => {
                    bounds::check_items(list)?;
                    bounds::check_count(count)?;
                }
                ("pprint" | "escape" | "e", [value, ..]) => bounds::check_bytes(python::to_str(value)?.len())?,
                (_, [list, ..]) => bounds::check_items(list)?,
                _ => {}
            }
            filter.call(state, &args)
        });
    }
}

fn write_value(out: &mut Output<'_>, _: &State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) => out.write_str(text)?,
        None => out.write_str(&python::to_str(value)?)?,
    }
    Ok(())
}

fn trim(value: Value, chars: Option<Value>) -> Result<String, minijinja::Error> {
    Ok(python::strip(&python::to_str(&value)?, "strip", chars.as_ref())?.to_owned())
}

fn replace(value: Value, old: Value, new: Value, count: Option<usize>) -> Result<String, minijinja::Error> {
    let (text, old, new) = (python::to_str(&value)?, python::to_str(&old)?, python::to_str(&new)?);
    python::replace(&text, &old, &new, count)
}

fn items(state: &State<'_, '_>, value: Value) -> Result<Value, minijinja::Error> {
    if value.is_undefined() {
        Ok(Value::from(Vec::<Value>::new()))
    } else {
        python::call_method(state, &value, "items", &[])
    }
}

fn join(args: Rest<Value>) -> Result<String, minijinja::Error> {
    let [items, separator, attribute] = python::named(&args, ["value", "d", "attribute"])?;
    let separator = separator.map_or(Ok(String::new()), |separator| python::to_str(&separator))?;
    let items = items.unwrap_or_default();
    let part = |item: Value| match &attribute {
        Some(attribute) => python::to_str(&item.get_item(attribute)?),
        None => python::to_str(&item),
    };
    python::join(&separator, items.try_iter()?.map(part))
}

fn sum(state: &State<'_, '_>, args: Rest<Value>) -> Result<Value, minijinja::Error> {
    let [items, attribute] = python::named(&args, ["iterable", "attribute"])?;
    let mut items = items.unwrap_or_default();
    bounds::check_items(&items)?;
    if let Some(attribute) = attribute {
        items = items.try_iter()?.map(|item| item.get_item(&attribute)).collect::<Result<Value, _>>()?;
    }
    minijinja::filters::sum(state, items)
}

fn length(value: Value) -> Result<usize, minijinja::Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.chars().filter(|c| !python::is_mark(*c)).count());
    }
    match value.len().filter(|_| !value.is_none()) {
        Some(len) => Ok(len),
        None if value.is_none() => Err(minijinja::Error::new(ErrorKind::InvalidOperation, "None has no length")),
        None => Ok(value.try_iter()?.count()),
    }
}

/// The strings that stand in a template's code.
fn literals_of(source: &str) -> Vec<String> {
    static CODE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?s)\{[{%].*?[}%]\}").ok());
    static LITERAL: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r#"(?s)'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)""#).ok());
    let (Some(code), Some(literal)) = (CODE.as_ref(), LITERAL.as_ref()) else { return Vec::new() };
    let strings = code.find_iter(source).flat_map(|code| literal.captures_iter(code.as_str()));
    let mut literals: Vec<String> = strings
        .filter_map(|string| string.get(1).or(string.get(2)))
        .map(|string| string.as_str().replace(r"\n", "\n").replace(r"\t", "\t").replace(r"\'", "'"))
        .collect();
    literals.sort();
    literals.dedup();
    literals
}

/// The operators that make chains, and what looks like them in its text, but for the signs of its tags.
fn count_operators(source: &str) -> usize {
    static OPERATOR: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{[{%#][-+]?|[-+]?[}%#]\}|([-+*/%~]|\b(?:not|and|or)\b)").ok());
    let operators = OPERATOR.iter().flat_map(|operator| operator.captures_iter(source));
    operators.filter(|found| found.get(1).is_some()).count()
}

/// `{% generation %}` marks the model's own words for training. It writes nothing, but what is set in it
/// stays in it; Jinja itself does not know it.
fn without_generation_tags(source: &str) -> String {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(\{%[-+]?[ \t\n]*)(end)?generation([ \t\n]*[-+]?%\})").ok());
    let Some(tag) = TAG.as_ref() else { return source.to_owned() };
    let replace = |tag: &Captures<'_>| {
        let word = if tag.get(2).is_some() { "endwith" } else { "with" };
        format!("{}{word}{}", &tag[1], &tag[3])
    };
    tag.replace_all(source, replace).into_owned()
}

/// A buffer that refuses to grow without end.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > bounds::MAX_BYTES {
            return Err(io::Error::other(format!("the rendered prompt is longer than {} bytes", bounds::MAX_BYTES)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: Value) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, python::to_str(&message)?))
}

fn strftime(time: NaiveDateTime, format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    write!(text, "{}", time.format(&python::date_format(format)))
        .map_err(|_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no date format")))?;
    Ok(text)
}
