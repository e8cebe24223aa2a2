//! Filters that make texts fit.

use super::super::{
    args::Args,
    budget::{Outcome, fail},
    letters,
    lexer::is_space,
    repr,
    text::{Text, TextBuilder},
    value::Value,
    vm::Vm,
};

/// A number of characters.
fn chars(value: Option<Value>, default: usize) -> Outcome<usize> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_int().map(usize::try_from) {
            Some(Ok(count)) => Ok(count),
            _ => fail("a number of characters is needed"),
        },
    }
}

pub fn truncate(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [length, kill_words, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let (length, leeway) = (chars(length, 255)?, chars(leeway.filter(|leeway| !matches!(leeway, Value::None)), 5)?);
    let end = match end {
        Some(end) => repr::to_text(vm, &end)?,
        None => Text::new(&vm.budget, "...")?,
    };
    value.check_defined()?;
    let Value::Text(text) = &value else { return fail(format!("object of type '{}' has no len()", value.type_name())) };
    let end_chars = end.char_count()?;
    if length < end_chars {
        return fail(format!("expected length >= {end_chars}, got {length}"));
    }
    if text.char_count()? <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let mut cut = text.byte_of(length - end_chars)?;
    if !kill_words.is_some_and(|kill| kill.is_true()) {
        vm.budget.scan(cut)?;
        cut = text[..cut].rfind(' ').unwrap_or(cut);
    }
    let mut out = TextBuilder::new(&vm.budget)?;
    out.push_range(text, 0..cut)?;
    out.push(&end)?;
    out.finish().map(Value::Text)
}

/// Breaks lines as Python's `textwrap` does.
pub fn wordwrap(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [width, break_long, line_end, break_hyphens] =
        args.bind("wordwrap", ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let width = chars(width, 79)?;
    if width == 0 {
        return fail("invalid width 0 (must be > 0)");
    }
    let is_true = |value: Option<Value>| value.is_none_or(|value| value.is_true());
    let (break_long, break_hyphens) = (is_true(break_long), is_true(break_hyphens));
    let line_end = match line_end {
        None | Some(Value::None) => Text::new(&vm.budget, "\n")?,
        Some(line_end) => repr::to_text(vm, &line_end)?,
    };
    value.check_defined()?;
    let Value::Text(text) = &value else {
        return fail(format!("'{}' object has no attribute 'splitlines'", value.type_name()));
    };
    vm.budget.work(text.len())?;
    let _held = vm.budget.hold(24 * text.len())?;
    let mut out = TextBuilder::new(&vm.budget)?;
    for (i, paragraph) in letters::lines(text, false).into_iter().enumerate() {
        if i > 0 {
            out.push(&line_end)?;
        }
        let chunks = chunks(paragraph, break_hyphens);
        for (i, line) in wrapped(chunks, width, break_long).into_iter().enumerate() {
            if i > 0 {
                out.push(&line_end)?;
            }
            for part in line {
                out.push_range(text, range_in(text, part))?;
            }
        }
    }
    out.finish().map(Value::Text)
}

fn range_in(text: &str, part: &str) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.len()
}

/// Puts chunks onto lines. White space at a line's end is dropped, and at its beginning, but for the first line's.
fn wrapped(chunks: Vec<&str>, width: usize, break_long: bool) -> Vec<Vec<&str>> {
    let mut lines: Vec<Vec<&str>> = Vec::new();
    let mut rest = chunks.into_iter().peekable();
    let mut left_over: Option<&str> = None;
    let is_blank = |chunk: &str| chunk.chars().all(is_space);
    while left_over.is_some() || rest.peek().is_some() {
        let (mut line, mut len) = (Vec::new(), 0);
        left_over = left_over.or_else(|| rest.next()).filter(|chunk| lines.is_empty() || !is_blank(chunk));
        while let Some(chunk) = left_over.take().or_else(|| rest.next()) {
            let chars = chunk.chars().take(width + 1).count();
            if len + chars <= width {
                line.push(chunk);
                len += chars;
                continue;
            }
            left_over = Some(chunk);
            // A word too long for any line is broken, or gets a line of its own.
            if chars > width && (break_long || line.is_empty()) {
                let end = if break_long { chunk.char_indices().nth(width - len) } else { None };
                let cut = end.map_or(chunk.len(), |(at, _)| at);
                line.push(&chunk[..cut]);
                left_over = Some(&chunk[cut..]).filter(|rest| !rest.is_empty());
            }
            break;
        }
        if line.last().is_some_and(|chunk| is_blank(chunk)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line);
        } else if left_over.is_none() && rest.peek().is_none() {
            break;
        }
    }
    lines
}

/// Words and the white space between them. Words may be split behind hyphens and at dashes.
fn chunks(text: &str, break_hyphens: bool) -> Vec<&str> {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let offset = |at: usize| chars.get(at).map_or(text.len(), |(offset, _)| *offset);
    let (mut chunks, mut start) = (Vec::new(), 0);
    while start < chars.len() {
        let is_blank = is_wrap_space(chars[start].1);
        let len = chars[start..].iter().take_while(|(_, c)| is_wrap_space(*c) == is_blank).count();
        let word_end = start + len;
        while start < word_end {
            let end = if is_blank || !break_hyphens { word_end } else { chunk_end(&chars, start, word_end) };
            chunks.push(&text[offset(start)..offset(end)]);
            start = end;
        }
    }
    chunks
}

fn is_wrap_space(c: char) -> bool {
    "\t\n\x0B\x0C\r ".contains(c)
}

/// Where the first chunk of a word ends: behind a hyphen between letters, or around a dash.
fn chunk_end(chars: &[(usize, char)], start: usize, word_end: usize) -> usize {
    let at = |index: usize| chars.get(index).map(|(_, c)| *c);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    let dash_at = |index: usize| {
        let before = index > 0 && at(index - 1).is_some_and(|c| is_word(c) || "!\"'&.,?".contains(c));
        if !before {
            return None;
        }
        let end = index + chars[index..].iter().take_while(|(_, c)| *c == '-').count();
        (end >= index + 2 && at(end).is_some_and(is_word)).then_some(end)
    };
    if let Some(end) = dash_at(start) {
        return end;
    }
    for index in start + 1..word_end {
        if at(index) != Some('-') {
            continue;
        }
        if dash_at(index).is_some() {
            return index;
        }
        let is_before = is_letter(at(index - 1))
            && (index >= start + 2 && is_letter(at(index - 2))
                || index >= start + 3 && at(index - 2) == Some('-') && is_letter(at(index - 3)));
        let is_after = is_letter(at(index + 1))
            && (is_letter(at(index + 2)) || at(index + 2) == Some('-') && is_letter(at(index + 3)));
        if is_before && is_after {
            return index + 1;
        }
    }
    word_end
}
