use std::{fmt::Write as _, io, path::Path, sync::LazyLock};

use minijinja::{
    Environment, ErrorKind, Value, context,
    value::{Kwargs, ViaDeserialize},
};
use regex::{Captures, Regex};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{Error, Message, Result};

/// A model's way to write a conversation down, in Jinja as transformers runs it.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

const NAME: &str = "chat_template";
/// Steps a template may take.
const FUEL: u64 = 20_000_000;
/// Bytes a template may be long, and may write.
const MAX_BYTES: usize = 16 << 20;

impl ChatTemplate {
    /// Parses a template. `path` is where it came from, `bos_token` and `eos_token` are the texts
    /// it may use.
    pub fn new(path: &Path, source: String, bos_token: String, eos_token: String) -> Result<Self> {
        if source.len() > MAX_BYTES {
            return Err(Error::model(path, format!("chat_template has {} bytes", source.len())));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_tags(&source))
            .map_err(|error| Error::model_because(path, "chat_template is not a valid template", error))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// Writes the conversation down, up to where the model's answer begins.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let failed = |error: minijinja::Error| Error::ChatTemplate {
            reason: error.detail().map_or_else(|| error.to_string(), str::to_owned),
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let context = context! {
            messages => messages,
            add_generation_prompt => true,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let mut out = Limited(Vec::new());
        template.render_captured_to(context, &mut out).map_err(failed)?;
        String::from_utf8(out.0).map_err(|_| Error::ChatTemplate { reason: "it wrote no UTF-8".into() })
    }
}

/// `{% generation %}` marks the model's own words for training and writes nothing; Jinja itself does
/// not know it.
fn without_generation_tags(source: &str) -> String {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(\{%[-+]?[ \t\n]*)(end)?generation([ \t\n]*[-+]?%\})").ok());
    let Some(tag) = TAG.as_ref() else { return source.to_owned() };
    let replace = |tag: &Captures<'_>| {
        let word = if tag.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{word}{}", &tag[1], &tag[3])
    };
    tag.replace_all(source, replace).into_owned()
}

/// A buffer that refuses to grow without end.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::other(format!("the rendered prompt is longer than {MAX_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(&format))
        .map_err(|_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no date format")))?;
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: minijinja's own filter escapes for HTML.
fn to_json(value: ViaDeserialize<serde_json::Value>, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    let _ = options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            value
                .0
                .serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(indent.as_bytes())))
        }
        None => value.0.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    written.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Python's separators: `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
