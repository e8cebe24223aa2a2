//! Splits a template into tokens, with the white space that Jinja takes away from around its tags.

use super::budget::{Outcome, fail};

#[derive(Debug, Clone, PartialEq)]
pub enum LexToken {
    /// Text that is written as it stands.
    Data(String),
    BeginPrint,
    EndPrint,
    BeginBlock,
    EndBlock,
    Name(String),
    Text(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// The longest come first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The tokens of a template, each with its line, and a last one for its end.
pub fn tokenize(source: &str) -> Outcome<Vec<(LexToken, u32)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, starts_line: true, tokens: Vec::new(), open: Vec::new() };
    match lexer.run() {
        Ok(()) => {
            lexer.push(LexToken::End);
            Ok(lexer.tokens)
        }
        Err(mut failure) => {
            failure.reason = format!("line {}: {}", lexer.line, failure.reason);
            Err(failure)
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
    /// Whether a line began where the last tag ended.
    starts_line: bool,
    tokens: Vec<(LexToken, u32)>,
    /// The brackets that are open.
    open: Vec<char>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: LexToken) {
        self.tokens.push((token, self.line));
    }

    fn skip(&mut self, bytes: usize) {
        let skipped = &self.source[self.at..self.at + bytes];
        self.line += skipped.matches('\n').count() as u32;
        self.at += bytes;
    }

    fn run(&mut self) -> Outcome<()> {
        while !self.rest().is_empty() {
            let Some(start) = next_tag(self.rest()) else {
                let data = self.rest().to_owned();
                self.data(data, self.rest().len());
                break;
            };
            let rest = &self.rest()[start..];
            let sign = rest[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let raw = raw_begin(rest);
            let may_strip = !rest.starts_with("{{");
            let data = self.before_tag(&self.rest()[..start], sign, may_strip);
            self.data(data, start);
            let signed = 2 + usize::from(sign.is_some());
            match (&rest[..2], raw) {
                (_, Some(len)) => self.raw(len)?,
                ("{#", _) => self.comment(signed)?,
                ("{{", _) => self.code(signed, LexToken::BeginPrint)?,
                _ => self.code(signed, LexToken::BeginBlock)?,
            }
        }
        Ok(())
    }

    /// Writes text that takes as many bytes of the source.
    fn data(&mut self, data: String, bytes: usize) {
        if !data.is_empty() {
            self.push(LexToken::Data(data));
        }
        self.skip(bytes);
    }

    /// The text before a tag, trimmed as the tag asks.
    fn before_tag(&self, text: &str, sign: Option<char>, may_strip: bool) -> String {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        let blank = !text[line..].is_empty() && text[line..].chars().all(is_space);
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if may_strip && blank && (line > 0 || self.starts_line) => &text[..line],
            _ => text,
        };
        kept.to_owned()
    }

    /// Ends a tag, whose closing sign begins at `end` bytes from here and has two characters.
    fn close(&mut self, end: usize, trims: bool) {
        let rest = &self.rest()[end..];
        let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
        let after = &rest[2 + usize::from(sign.is_some())..];
        let space = match sign {
            Some('-') => after.len() - after.trim_start_matches(is_space).len(),
            Some(_) => 0,
            None => usize::from(trims && after.starts_with('\n')),
        };
        let start = self.at;
        self.skip(self.rest().len() - after.len() + space);
        self.starts_line = self.source[start..self.at].ends_with('\n');
    }

    fn comment(&mut self, signed: usize) -> Outcome<()> {
        self.skip(signed);
        let Some(end) = self.rest().find("#}") else { return fail("Missing end of comment tag") };
        let has_sign = self.rest()[..end].ends_with(['-', '+']);
        self.close(end - usize::from(has_sign), true);
        Ok(())
    }

    fn raw(&mut self, len: usize) -> Outcome<()> {
        self.skip(len);
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let start = from + found;
            if let Some((sign, end)) = raw_end(&rest[start..]) {
                self.starts_line = false;
                let data = self.before_tag(&rest[..start], sign, true);
                self.data(data, start);
                self.close(end, true);
                return Ok(());
            }
            from = start + 2;
        }
        fail("Missing end of raw directive")
    }

    /// The code inside `{{ }}` or `{% %}`.
    fn code(&mut self, signed: usize, begin: LexToken) -> Outcome<()> {
        let is_block = begin == LexToken::BeginBlock;
        self.push(begin);
        self.skip(signed);
        self.open.clear();
        let closing = if is_block { "%}" } else { "}}" };
        loop {
            let rest = self.rest();
            let unsigned = rest.strip_prefix('-').or(rest.strip_prefix('+').filter(|_| is_block)).unwrap_or(rest);
            if self.open.is_empty() && unsigned.starts_with(closing) {
                self.push(if is_block { LexToken::EndBlock } else { LexToken::EndPrint });
                self.close(0, is_block);
                return Ok(());
            }
            let Some(first) = rest.chars().next() else {
                return fail("the template ends within a tag");
            };
            self.token(first)?;
        }
    }

    fn token(&mut self, first: char) -> Outcome<()> {
        let rest = self.rest();
        if is_space(first) {
            self.skip(rest.len() - rest.trim_start_matches(is_space).len());
        } else if first.is_ascii_digit() {
            let (token, len) = super::number::literal(rest, self.source[..self.at].ends_with('.'))?;
            self.push(token);
            self.skip(len);
        } else if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.push(LexToken::Name(rest[..len].to_owned()));
            self.skip(len);
        } else if matches!(first, '\'' | '"') {
            let len = text_len(rest, first);
            let Some(len) = len else { return fail(format!("unexpected char {first:?}")) };
            self.push(LexToken::Text(unescape(&rest[1..len - 1])?));
            self.skip(len);
        } else {
            self.operator(first)?;
        }
        Ok(())
    }

    fn operator(&mut self, first: char) -> Outcome<()> {
        let found = OPERATORS.iter().find(|operator| self.rest().starts_with(**operator));
        let Some(operator) = found else { return fail(format!("unexpected char {first:?}")) };
        match first {
            '(' => self.open.push(')'),
            '[' => self.open.push(']'),
            '{' => self.open.push('}'),
            ')' | ']' | '}' => match self.open.pop() {
                Some(expected) if expected == first => {}
                Some(expected) => return fail(format!("unexpected '{first}', expected '{expected}'")),
                None => return fail(format!("unexpected '{first}'")),
            },
            _ => {}
        }
        self.push(LexToken::Operator(operator));
        self.skip(operator.len());
        Ok(())
    }
}

/// White space, as Python defines it.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1C'..='\x1F').contains(&c)
}

fn next_tag(text: &str) -> Option<usize> {
    let mut starts = text.match_indices('{').map(|(at, _)| at);
    starts.find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// The length of the `{% raw %}` that a text begins with.
fn raw_begin(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("{%")?;
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(is_space);
    let rest = rest.strip_prefix("raw")?.trim_start_matches(is_space);
    let end = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => rest.strip_prefix("%}")?,
    };
    Some(text.len() - end.len())
}

/// The sign of the `{% endraw %}` that a text begins with, and where its end begins.
fn raw_end(text: &str) -> Option<(Option<char>, usize)> {
    let rest = text.strip_prefix("{%")?;
    let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = rest[sign.map_or(0, char::len_utf8)..].trim_start_matches(is_space);
    let rest = rest.strip_prefix("endraw")?.trim_start_matches(is_space);
    let ends = ["-%}", "+%}", "%}"].iter().any(|end| rest.starts_with(end));
    ends.then_some((sign, text.len() - rest.len()))
}

/// The length of the string literal that a text begins with.
fn text_len(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The value of a string literal.
fn unescape(text: &str) -> Outcome<String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { break };
        let digits = |from: usize, most: usize, radix: u32| {
            let digits = rest[from..].chars().take(most).take_while(|c| c.is_digit(radix)).count();
            (u32::from_str_radix(&rest[from..from + digits], radix).unwrap_or_default(), digits)
        };
        let (code, len) = match c {
            '0'..='7' => digits(0, 3, 8),
            'x' | 'u' | 'U' => {
                let expected = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                match digits(1, expected, 16) {
                    (code, found) if found == expected => (code, 1 + found),
                    _ => return fail(format!("truncated \\{c} escape")),
                }
            }
            'N' => return fail("characters cannot be named by \\N"),
            _ => {
                let known = "\n\\'\"abfnrtv".find(c);
                match known {
                    Some(0) => {}
                    Some(at) => out.push_str(&"\n\\'\"\x07\x08\x0C\n\r\t\x0B"[at..=at]),
                    None => out.extend(['\\', c]),
                }
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        let Some(c) = char::from_u32(code) else { return fail(format!("\\{code:x} is no character")) };
        out.push(c);
        rest = &rest[len..];
    }
    out.push_str(rest);
    Ok(out)
}
