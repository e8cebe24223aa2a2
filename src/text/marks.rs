use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::Tokenizer;
use crate::{Error, Result, Role};

/// Keeps texts of users apart from the template's own text.
///
/// A mark, a character that occurs in no text, is put behind each character of a text with
/// which a control token could begin. It goes through the template with the text; in the rendered
/// prompt it tells which control tokens the template wrote and which a user did.
pub struct Marks {
    mark: char,
    first_chars: HashSet<char>,
    /// What a template may look for in a text, such as `</think>`, gets no mark: added tokens that are
    /// no control tokens, and strings in its code.
    plain: BTreeSet<String>,
}

impl Marks {
    pub fn new(tokenizer: &Tokenizer, literals: &[String], context: &Map<String, Value>) -> Result<Self> {
        // Characters that Unicode reserves for a program's own use and that no text may contain.
        let unused = |mark: &char| !context.values().any(|value| contains(value, *mark));
        let mark = ('\u{FDD0}'..='\u{FDEF}').find(unused);
        let special = || tokenizer.special.keys();
        let first_chars: HashSet<char> = special().filter_map(|text| text.chars().next()).collect();
        let mut plain = tokenizer.plain_added_texts.clone();
        for literal in literals {
            let ends = literal.match_indices(|c| first_chars.contains(&c)).map(|(at, _)| &literal[at..]);
            let harmless = |end: &&str| !special().any(|token| token.starts_with(end) || end.starts_with(token));
            plain.extend(ends.filter(harmless).map(str::to_owned));
        }
        Ok(Self {
            mark: mark.ok_or_else(|| Error::config("messages", "they contain all of U+FDD0 to U+FDEF"))?,
            first_chars,
            plain,
        })
    }

    /// Puts marks into all texts of a value. The names of fields are left as they are if they are words
    /// that a template may know, as are roles.
    pub fn mark(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.mark_text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mark(item)),
            Value::Object(fields) => {
                for (name, mut field) in std::mem::take(fields) {
                    if name != "role" || !field.as_str().is_some_and(Role::is_known) {
                        self.mark(&mut field);
                    }
                    let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                    fields.insert(if is_word { name } else { self.mark_text(&name) }, field);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn mark_text(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            marked.push(c);
            let plain = || self.plain.iter().any(|token| text[at..].starts_with(token));
            if self.first_chars.contains(&c) && !plain() {
                marked.push(self.mark);
            }
        }
        marked
    }

    /// The token ids of a rendered prompt: control tokens only where the template wrote them.
    pub fn encode(&self, tokenizer: &Tokenizer, rendered: &str) -> Result<Vec<u32>> {
        let (text, marked) = self.unmark(rendered);
        let special_at = |at: usize| {
            text[at..].chars().next().filter(|c| self.first_chars.contains(c))?;
            let candidates = tokenizer.special.values().filter(|token| text[at..].starts_with(&token.content));
            candidates.max_by_key(|token| token.content.len())
        };
        if !marked.iter().any(|at| special_at(*at).is_some()) {
            return tokenizer.encode(&text, false);
        }
        let (mut ids, mut plain_from, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            match special_at(at).filter(|_| !marked.contains(&at)) {
                Some(token) => {
                    let before = &text[plain_from..at];
                    ids.extend(tokenizer.encode_plain(if token.lstrip { before.trim_end() } else { before })?);
                    ids.extend(tokenizer.id_of(&token.content));
                    at += token.content.len();
                    let after = &text[at..];
                    at += if token.rstrip { after.len() - after.trim_start().len() } else { 0 };
                    plain_from = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        ids.extend(tokenizer.encode_plain(&text[plain_from..])?);
        Ok(ids)
    }

    /// The text without marks, and the byte offsets of the characters that had one.
    fn unmark(&self, rendered: &str) -> (String, HashSet<usize>) {
        let (mut text, mut marked, mut previous) = (String::with_capacity(rendered.len()), HashSet::new(), 0);
        for c in rendered.chars() {
            if c == self.mark {
                marked.insert(previous);
            } else {
                previous = text.len();
                text.push(c);
            }
        }
        (text, marked)
    }
}

fn contains(value: &Value, mark: char) -> bool {
    match value {
        Value::String(text) => text.contains(mark),
        Value::Array(items) => items.iter().any(|item| contains(item, mark)),
        Value::Object(fields) => fields.iter().any(|(name, field)| name.contains(mark) || contains(field, mark)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
