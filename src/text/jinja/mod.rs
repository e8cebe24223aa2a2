//! Jinja as transformers runs it, with limits: every operation draws on one budget of work and memory, and nesting is
//! bounded.

mod args;
mod ast;
mod attributes;
#[cfg(test)]
mod bombs;
mod budget;
mod compare;
mod dict;
mod eval;
mod expressions;
mod filters;
mod format;
mod format_spec;
mod globals;
mod html;
mod json;
mod letters;
mod lexer;
mod loops;
mod methods;
mod number;
mod operators;
mod parser;
mod repr;
mod strings;
mod tests;
mod text;
mod value;
mod vm;

pub use budget::JinjaError;

use std::ops::Range;

use chrono::NaiveDateTime;
use serde_json::{Map, Value as Json};

use budget::{Outcome, RenderBudget};

/// A template that was parsed.
pub struct Template {
    parsed: parser::Parsed,
    source: String,
}

/// The output of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub text: String,
    /// The bytes that are from the values it was given, or were made of them, in order. All others stand in the
    /// template.
    pub values: Vec<Range<usize>>,
}

/// How many bytes values from outside hold, about.
pub fn size(values: &Map<String, Json>) -> usize {
    values.values().map(json::size).sum()
}

impl Template {
    pub fn parse(source: &str) -> Outcome<Self> {
        Ok(Self { parsed: parser::parse(source)?, source: source.to_owned() })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders it with values from outside, and with words of its maker, which count as its own. `now` is for
    /// `strftime_now`.
    pub fn render(
        &self,
        values: &Map<String, Json>,
        words: &[(&str, &str)],
        now: Option<NaiveDateTime>,
    ) -> Outcome<Written> {
        let budget = RenderBudget::new(size(values));
        let value = |name: &String| {
            if let Some((_, word)) = words.iter().find(|(word, _)| word == name) {
                return value::Value::text(&budget, *word).map(Some);
            }
            if name == "self" && !self.parsed.blocks.is_empty() {
                return self.blocks(&budget).map(Some);
            }
            values.get(name).map(|value| json::value(&budget, value, 0)).transpose()
        };
        let context = self.parsed.names.iter().map(value).collect::<Outcome<_>>()?;
        let mut vm = vm::Vm::new(&self.parsed, budget, context)?;
        vm.now = now;
        let text = vm.render()?;
        Ok(Written { values: text.value_ranges(), text: text.to_string() })
    }

    /// The blocks by name, for `self`. They see the variables of the template as a whole.
    fn blocks(&self, budget: &RenderBudget) -> Outcome<value::Value> {
        let mut blocks = dict::DictBuilder::new(budget)?;
        for (name, index) in &self.parsed.blocks {
            let block = value::MacroRef { index: *index, scope: 0 };
            blocks.insert(value::Value::text(budget, &**name)?, value::Value::Macro(block))?;
        }
        blocks.finish().map(value::Value::Dict)
    }
}
