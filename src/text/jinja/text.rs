//! Texts that track which of their bytes came from values and which from the template.

use std::{cell::OnceCell, ops::Deref, ops::Range, rc::Rc};

use super::budget::{HeldMemory, Outcome, RenderBudget, check_text};

/// Memory that a text takes beside its bytes.
const TEXT_BYTES: usize = 96;

/// An immutable text.
#[derive(Clone)]
pub struct Text(Rc<TextInner>);

struct TextInner {
    text: Box<str>,
    origin: Origin,
    /// Whether it is HTML, so that it is not escaped again.
    is_markup: bool,
    chars: OnceCell<usize>,
    _held: HeldMemory,
}

/// Where the bytes of a text are from.
#[derive(Clone)]
enum Origin {
    Template,
    Value,
    /// Some from values: these ranges, in order and apart.
    Mixed(Box<[Range<usize>]>),
}

impl Text {
    /// A text of the template.
    pub fn new(budget: &RenderBudget, text: impl Into<Box<str>>) -> Outcome<Self> {
        Self::of(budget, text.into(), Origin::Template)
    }

    /// A text from outside.
    pub fn from_value(budget: &RenderBudget, text: impl Into<Box<str>>) -> Outcome<Self> {
        Self::of(budget, text.into(), Origin::Value)
    }

    /// A text that was made of another, which may have lost the places of its parts.
    pub fn derived(&self, text: impl Into<Box<str>>) -> Outcome<Self> {
        let origin = if self.is_template() { Origin::Template } else { Origin::Value };
        Self::of(self.0._held.budget(), text.into(), origin)
    }

    fn of(budget: &RenderBudget, text: Box<str>, origin: Origin) -> Outcome<Self> {
        check_text(text.len())?;
        let held = budget.hold(text.len() + TEXT_BYTES)?;
        budget.scan(text.len())?;
        Ok(Self(Rc::new(TextInner { text, origin, is_markup: false, chars: OnceCell::new(), _held: held })))
    }

    pub fn budget(&self) -> &RenderBudget {
        self.0._held.budget()
    }

    /// Whether the template wrote all of it.
    pub fn is_template(&self) -> bool {
        matches!(self.0.origin, Origin::Template)
    }

    pub fn is_markup(&self) -> bool {
        self.0.is_markup
    }

    /// The same text as HTML, or as none.
    pub fn with_markup(&self, is_markup: bool) -> Outcome<Self> {
        if is_markup == self.is_markup() {
            return Ok(self.clone());
        }
        let held = self.budget().hold(self.len() + TEXT_BYTES)?;
        self.budget().scan(self.len())?;
        let (text, origin) = (self.0.text.clone(), self.0.origin.clone());
        Ok(Self(Rc::new(TextInner { text, origin, is_markup, chars: OnceCell::new(), _held: held })))
    }

    /// Its number of characters.
    pub fn char_count(&self) -> Outcome<usize> {
        if let Some(count) = self.0.chars.get() {
            return Ok(*count);
        }
        self.budget().scan(self.len())?;
        Ok(*self.0.chars.get_or_init(|| self.chars().count()))
    }

    /// The byte offset of a character, or of the end.
    pub fn byte_of(&self, char_index: usize) -> Outcome<usize> {
        if self.char_count()? == self.len() {
            return Ok(char_index.min(self.len()));
        }
        self.budget().scan(self.len())?;
        Ok(self.char_indices().nth(char_index).map_or(self.len(), |(at, _)| at))
    }

    /// A part of it.
    pub fn slice(&self, range: Range<usize>) -> Outcome<Self> {
        if range == (0..self.len()) {
            return Ok(self.clone());
        }
        let mut out = TextBuilder::new(self.budget())?;
        out.push_range(self, range)?;
        out.finish()
    }

    /// The part that `part`, a slice of its `str`, is.
    pub fn slice_of(&self, part: &str) -> Outcome<Self> {
        let start = (part.as_ptr() as usize).wrapping_sub(self.as_ptr() as usize);
        if start > self.len() || start + part.len() > self.len() {
            return self.derived(part);
        }
        self.slice(start..start + part.len())
    }

    /// The ranges of bytes in `range` that came from values, relative to its start.
    fn values_in(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let Range { start, end } = range;
        let (ranges, all) = match &self.0.origin {
            Origin::Template => (&[][..], None),
            Origin::Value => (&[][..], Some(0..self.len())),
            Origin::Mixed(ranges) => (&ranges[..], None),
        };
        let first = ranges.partition_point(|found| found.end <= start);
        let found = ranges[first..].iter().cloned().chain(all).take_while(move |found| found.start < end);
        found.map(move |found| found.start.max(start) - start..found.end.min(end) - start)
    }

    /// The ranges of bytes that came from values.
    pub fn value_ranges(&self) -> Vec<Range<usize>> {
        self.values_in(0..self.len()).collect()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// A text that is being written.
pub struct TextBuilder {
    text: String,
    values: Vec<Range<usize>>,
    held: HeldMemory,
}

impl TextBuilder {
    pub fn new(budget: &RenderBudget) -> Outcome<Self> {
        Ok(Self { text: String::new(), values: Vec::new(), held: budget.hold(TEXT_BYTES)? })
    }

    pub fn len(&self) -> usize {
        self.text.len()
    }

    pub fn budget(&self) -> &RenderBudget {
        self.held.budget()
    }

    pub fn push(&mut self, text: &Text) -> Outcome<()> {
        self.push_range(text, 0..text.len())
    }

    /// Writes a part of a text.
    pub fn push_range(&mut self, text: &Text, range: Range<usize>) -> Outcome<()> {
        self.reserve(range.len())?;
        let start = self.text.len();
        for found in text.values_in(range.clone()) {
            self.add_value(start + found.start..start + found.end)?;
        }
        self.text.push_str(&text[range]);
        Ok(())
    }

    /// Writes text of the template.
    pub fn push_str(&mut self, text: &str) -> Outcome<()> {
        self.reserve(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// Writes a text that was derived from another, or from a part of it.
    pub fn push_derived(&mut self, text: &str, from: &Text) -> Outcome<()> {
        self.reserve(text.len())?;
        let start = self.text.len();
        self.text.push_str(text);
        if from.is_template() { Ok(()) } else { self.add_value(start..start + text.len()) }
    }

    fn reserve(&mut self, bytes: usize) -> Outcome<()> {
        check_text(self.text.len() + bytes)?;
        self.held.budget().scan(bytes)?;
        self.held.grow(bytes)
    }

    fn add_value(&mut self, range: Range<usize>) -> Outcome<()> {
        match self.values.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => {
                self.held.grow(size_of::<Range<usize>>())?;
                self.values.push(range);
            }
        }
        Ok(())
    }

    /// A text that counts as a value's as a whole.
    pub fn finish_as_value(mut self) -> Outcome<Text> {
        self.values.clear();
        self.add_value(0..self.text.len())?;
        self.finish()
    }

    pub fn finish(self) -> Outcome<Text> {
        let Self { text, values, held } = self;
        let origin = match &values[..] {
            [] => Origin::Template,
            [all] if *all == (0..text.len()) => Origin::Value,
            _ => Origin::Mixed(values.into()),
        };
        let text = text.into_boxed_str();
        Ok(Text(Rc::new(TextInner { text, origin, is_markup: false, chars: OnceCell::new(), _held: held })))
    }
}
