//! Prompts that a template has rendered. Control tokens are recognized only where the template wrote them.

use std::ops::Range;

use serde_json::{Map, Value};

use super::{ChatTemplate, EncodeMode, TokenizeBudget, Tokenizer};
use crate::Result;

/// The output of a chat template, and which parts of it come from its input values.
pub struct RenderedPrompt {
    pub text: String,
    /// Byte ranges, in order and apart.
    values: Vec<Range<usize>>,
}

/// The parts of a text that come from values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ValueSpans<'a> {
    text: &'a str,
    values: &'a [Range<usize>],
}

impl ValueSpans<'_> {
    /// Whether a character in this range comes from a value. Spaces beside others do not count: control tokens may take
    /// them along.
    pub fn is_any_in(&self, range: Range<usize>) -> bool {
        let is_blank = self.text[range.clone()].trim().is_empty();
        let first = self.values.partition_point(|value| value.end <= range.start);
        let values = self.values[first..].iter().take_while(|value| value.start < range.end);
        let mut parts = values.map(|value| value.start.max(range.start)..value.end.min(range.end));
        parts.any(|part| is_blank || !self.text[part].trim().is_empty())
    }
}

impl RenderedPrompt {
    pub fn new(template: &ChatTemplate, context: Map<String, Value>) -> Result<Self> {
        let written = template.render_with_origins(context)?;
        Ok(Self { text: written.text, values: written.values })
    }

    /// Leaves all from a byte offset on away.
    pub fn truncate(&mut self, end: usize) {
        self.text.truncate(end);
        self.values.retain(|value| value.start < end);
        if let Some(last) = self.values.last_mut() {
            last.end = last.end.min(end);
        }
    }

    /// Its token ids: control tokens only where the template wrote them.
    pub async fn encode(&self, tokenizer: &Tokenizer, budget: &mut TokenizeBudget) -> Result<Vec<u32>> {
        if let Some(ids) = tokenizer.encode_rendered(&self.text, self.given(), budget).await? {
            return Ok(ids);
        }
        budget.restart();
        self.encode_apart(tokenizer, budget).await
    }

    fn given(&self) -> ValueSpans<'_> {
        ValueSpans { text: &self.text, values: &self.values }
    }

    /// Encodes the text between the template's control tokens as plain text.
    async fn encode_apart(&self, tokenizer: &Tokenizer, budget: &mut TokenizeBudget) -> Result<Vec<u32>> {
        let (text, given) = (&self.text, self.given());
        let (mut ids, mut plain_from, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            budget.yield_if_due().await;
            let found = tokenizer.control().at_start_of(&text[at..]);
            match found.filter(|found| !given.is_any_in(at..at + found.token.content.len())) {
                Some(found) => {
                    let before = &text[plain_from..at];
                    let before = if found.token.lstrip { before.trim_end() } else { before };
                    let mode = EncodeMode::Plain { first: plain_from == 0 };
                    ids.extend(tokenizer.encode_within(before, mode, budget).await?);
                    ids.push(found.id);
                    at += found.token.content.len();
                    let after = &text[at..];
                    at += if found.token.rstrip { after.len() - after.trim_start().len() } else { 0 };
                    plain_from = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        let mode = EncodeMode::Plain { first: plain_from == 0 };
        ids.extend(tokenizer.encode_within(&text[plain_from..], mode, budget).await?);
        Ok(ids)
    }
}
