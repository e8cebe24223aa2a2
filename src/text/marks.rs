use std::collections::HashSet;

use super::Tokenizer;
use crate::{Error, Message, Result};

/// Keeps text of users apart from the template's own text.
///
/// A mark, a character that occurs in no message, is put behind each character of a message with
/// which a control token could begin. It goes through the template with the text; in the rendered
/// prompt it tells which control tokens the template wrote and which a user did.
pub struct Marks {
    mark: char,
    first_chars: HashSet<char>,
    /// Tokens that a template may look for in an answer, such as `</think>`; they get no mark.
    plain: Vec<String>,
}

impl Marks {
    pub fn new(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Self> {
        // Characters that Unicode reserves for a program's own use and that no text may contain.
        let unused = |mark: &char| !messages.iter().any(|message| message.content.contains(*mark));
        let mark = ('\u{FDD0}'..='\u{FDEF}').find(unused);
        Ok(Self {
            mark: mark.ok_or_else(|| Error::config("messages", "they contain all of U+FDD0 to U+FDEF"))?,
            first_chars: tokenizer.special_texts.iter().filter_map(|text| text.chars().next()).collect(),
            plain: tokenizer.plain_added_texts.iter().cloned().collect(),
        })
    }

    /// The messages with marks.
    pub fn mark(&self, messages: &[Message]) -> Vec<Message> {
        messages.iter().map(|message| Message::new(message.role, self.mark_text(&message.content))).collect()
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
            let candidates = tokenizer.special_texts.iter().filter(|token| text[at..].starts_with(token.as_str()));
            candidates.max_by_key(|token| token.len())
        };
        if !marked.iter().any(|at| special_at(*at).is_some()) {
            return tokenizer.encode(&text, false);
        }
        let (mut ids, mut plain_from, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            match special_at(at).filter(|_| !marked.contains(&at)) {
                Some(token) => {
                    ids.extend(tokenizer.encode_plain(&text[plain_from..at])?);
                    ids.extend(tokenizer.id_of(token));
                    at += token.len();
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
