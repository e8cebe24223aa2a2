use std::ops::Range;

use serde_json::{Map, Value};

use super::{ChatTemplate, Tokenizer};
use crate::Result;

/// A prompt that a template has written, and which of its characters are none of the template's.
pub struct Rendered {
    pub text: String,
    /// Byte offsets of characters that are not the template's, in order. Spaces are not among them.
    given: Vec<usize>,
}

impl Rendered {
    pub fn new(template: &ChatTemplate, context: Map<String, Value>) -> Result<Self> {
        let written = template.render_with_origins(context)?;
        let text = &written.text;
        let chars = |range: Range<usize>| text[range.clone()].char_indices().map(move |(at, c)| (range.start + at, c));
        let given = written.values.into_iter().flat_map(chars);
        let given = given.filter(|(_, c)| !c.is_whitespace()).map(|(at, _)| at).collect();
        Ok(Self { given, text: written.text })
    }

    /// Leaves all from a byte offset on away.
    pub fn truncate(&mut self, end: usize) {
        self.text.truncate(end);
        self.given.retain(|at| *at < end);
    }

    /// Its token ids: control tokens only where the template wrote them.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if self.given.is_empty() {
            return tokenizer.encode(&self.text, false);
        }
        let tokens = tokenizer.encode_with_offsets(&self.text)?;
        let is_given = |(id, (from, end)): &(u32, (usize, usize))| {
            tokenizer.is_control(*id, &self.text[*from..*end]) && self.has_given(*from, *end)
        };
        if !tokens.iter().any(is_given) {
            return Ok(tokens.into_iter().map(|(id, _)| id).collect());
        }
        self.encode_apart(tokenizer)
    }

    /// Encodes what is between the control tokens of the template.
    fn encode_apart(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let (text, mut ids, mut plain_from, mut at) = (&self.text, Vec::new(), 0, 0);
        while at < text.len() {
            let is_given = self.given.binary_search(&at).is_ok();
            let found = if is_given { None } else { tokenizer.control().at_start_of(&text[at..]) };
            match found.filter(|found| !self.has_given(at, at + found.token.content.len())) {
                Some(found) => {
                    let before = &text[plain_from..at];
                    ids.extend(tokenizer.encode_plain(if found.token.lstrip { before.trim_end() } else { before })?);
                    ids.push(found.id);
                    at += found.token.content.len();
                    let after = &text[at..];
                    at += if found.token.rstrip { after.len() - after.trim_start().len() } else { 0 };
                    plain_from = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        ids.extend(tokenizer.encode_plain(&text[plain_from..])?);
        Ok(ids)
    }

    /// Whether a character in this range is not the template's.
    fn has_given(&self, from: usize, end: usize) -> bool {
        let first = self.given.partition_point(|at| *at < from);
        self.given.get(first).is_some_and(|at| *at < end)
    }
}
