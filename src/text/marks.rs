use serde_json::{Map, Value};

use super::{Budget, ChatTemplate, Reading, Tokenizer, pipeline, stop_strings::Automaton};
use crate::{Error, Result, Role};

const ROLES: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::Tool];
/// Fields that templates ask for by name.
const FIELDS: [&str; 18] = [
    "role",
    "content",
    "name",
    "type",
    "text",
    "id",
    "function",
    "arguments",
    "parameters",
    "properties",
    "description",
    "required",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "thinking",
    "tools",
];

/// A prompt that a template has written, and which of its characters are none of the template's.
///
/// A mark, a character that occurs in no text, is put behind characters of the texts that a template is given. It goes
/// through the template with them. Marks may get in the way of a template that looks into texts: of several ways to
/// set them, the first counts with which the template writes what it writes without.
pub struct Rendered {
    pub text: String,
    /// Byte offsets of characters that are not the template's, in order. Spaces are not among them.
    given: Vec<usize>,
}

/// Which characters get marks.
#[derive(Clone, Copy, PartialEq)]
enum Marking {
    All,
    /// All but in what the template may look for, such as `</think>`: strings in its code, and added tokens that are
    /// text.
    Unknown,
    /// Of those, the ones with which a control token may begin, and all of a text that could be made part of one.
    Parts,
    /// As `Parts`, but for texts that are strings in its code.
    Beginnings,
}

impl Rendered {
    pub fn new(tokenizer: &Tokenizer, template: &ChatTemplate, context: Map<String, Value>) -> Result<Self> {
        // Characters that Unicode reserves for a program's own use and that no text may contain.
        let unused = |mark: &char| !context.values().any(|value| contains(value, *mark));
        let mark = ('\u{FDD0}'..='\u{FDEF}').find(unused);
        let mark = mark.ok_or_else(|| Error::config("messages", "they contain all of U+FDD0 to U+FDEF"))?;
        let plain = template.render(context.clone())?;
        for marking in [Marking::All, Marking::Unknown, Marking::Parts] {
            let rendered = Marks { mark, marking, tokenizer, template }.render(context.clone());
            if let Ok(rendered) = rendered
                && rendered.text == plain
            {
                return Ok(rendered);
            }
        }
        Marks { mark, marking: Marking::Beginnings, tokenizer, template }.render(context)
    }

    /// Its token ids: control tokens only where the template wrote them.
    pub async fn encode(&self, tokenizer: &Tokenizer, budget: &mut Budget) -> Result<Vec<u32>> {
        if let Some(ids) = tokenizer.encode_given(&self.text, &self.given, budget).await? {
            return Ok(ids);
        }
        budget.restart();
        self.encode_apart(tokenizer, budget).await
    }

    /// Encodes what is between the control tokens of the template.
    async fn encode_apart(&self, tokenizer: &Tokenizer, budget: &mut Budget) -> Result<Vec<u32>> {
        let (text, mut ids, mut plain_from, mut at) = (&self.text, Vec::new(), 0, 0);
        while at < text.len() {
            let is_given = self.given.binary_search(&at).is_ok();
            let found = if is_given { None } else { tokenizer.control().at_start_of(&text[at..]) };
            match found.filter(|found| !self.has_given(at, at + found.token.content.len())) {
                Some(found) => {
                    let before = &text[plain_from..at];
                    let before = if found.token.lstrip { before.trim_end() } else { before };
                    let reading = Reading::Plain { first: plain_from == 0 };
                    ids.extend(tokenizer.encode_within(before, reading, budget).await?);
                    ids.push(found.id);
                    at += found.token.content.len();
                    let after = &text[at..];
                    at += if found.token.rstrip { after.len() - after.trim_start().len() } else { 0 };
                    plain_from = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        let reading = Reading::Plain { first: plain_from == 0 };
        ids.extend(tokenizer.encode_within(&text[plain_from..], reading, budget).await?);
        Ok(ids)
    }

    /// Whether a character in this range is not the template's.
    fn has_given(&self, from: usize, end: usize) -> bool {
        pipeline::is_any_in(&self.given, from..end)
    }
}

struct Marks<'a> {
    mark: char,
    marking: Marking,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
}

impl Marks<'_> {
    fn render(&self, mut context: Map<String, Value>) -> Result<Rendered> {
        context.values_mut().for_each(|value| self.mark(value));
        Ok(self.unmark(&self.template.render(context)?))
    }

    /// Puts marks into all texts of a value but for roles. Names of fields that are words are left as they are too,
    /// unless a control token could be made of them.
    fn mark(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.mark_text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mark(item)),
            Value::Object(fields) => {
                for (name, mut field) in std::mem::take(fields) {
                    if name != "role" || !ROLES.iter().any(|role| field == role.as_str()) {
                        self.mark(&mut field);
                    }
                    fields.insert(if self.is_harmless(&name) { name } else { self.mark_text(&name) }, field);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn is_harmless(&self, name: &str) -> bool {
        let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        is_word && (FIELDS.contains(&name) || !self.tokenizer.control().resembles_word(name))
    }

    fn mark_text(&self, text: &str) -> String {
        let control = self.tokenizer.control();
        let is_part = match self.marking {
            Marking::All => true,
            Marking::Unknown => false,
            Marking::Parts => control.is_part(text),
            Marking::Beginnings => !self.template.literals.iter().any(|known| known == text) && control.is_part(text),
        };
        let known = if is_part {
            vec![false; text.len()]
        } else {
            covered(&self.tokenizer.texts_known_to(&self.template.literals), text.as_bytes())
        };
        let any_char = is_part || self.marking == Marking::Unknown;
        let mut marked = String::with_capacity(text.len() * 2);
        for (at, c) in text.char_indices() {
            marked.push(c);
            if !c.is_whitespace() && !known[at] && (any_char || control.may_begin_with(c)) {
                marked.push(self.mark);
            }
        }
        marked
    }

    fn unmark(&self, rendered: &str) -> Rendered {
        let (mut text, mut given, mut previous) = (String::with_capacity(rendered.len()), Vec::new(), None);
        for c in rendered.chars() {
            if c == self.mark {
                given.extend(previous.take());
            } else {
                previous = Some(text.len());
                text.push(c);
            }
        }
        Rendered { text, given }
    }
}

/// Which bytes of a text are in a string that the automaton finds.
fn covered(automaton: &Automaton, text: &[u8]) -> Vec<bool> {
    let mut prefix = 0;
    let found: Vec<usize> = text
        .iter()
        .map(|byte| {
            prefix = automaton.step(prefix, *byte);
            automaton.found(prefix).unwrap_or(0)
        })
        .collect();
    let mut covered = vec![false; text.len()];
    let mut left = 0;
    for at in (0..text.len()).rev() {
        left = found[at].max(left);
        covered[at] = left > 0;
        left = left.saturating_sub(1);
    }
    covered
}

fn contains(value: &Value, mark: char) -> bool {
    match value {
        Value::String(text) => text.contains(mark),
        Value::Array(items) => items.iter().any(|item| contains(item, mark)),
        Value::Object(fields) => fields.iter().any(|(name, field)| name.contains(mark) || contains(field, mark)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
