//! The values of templates: Python's, immutable, with their nesting bounded.

use std::{cell::Cell, rc::Rc};

use super::{
    budget::{HeldMemory, MAX_VALUE_DEPTH, Outcome, RenderBudget, fail},
    dict::Dict,
    loops::LoopState,
    text::Text,
};

#[derive(Clone)]
pub enum Value {
    Undefined(Missing),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
    List(List),
    Tuple(List),
    Dict(Dict),
    Range(RangeObject),
    /// `dict.keys()` and its like.
    View(View, Dict),
    Generator(Rc<Generator>),
    /// The number of a namespace, whose content may change and may include itself.
    Namespace(usize),
    Macro(MacroRef),
    Loop(Rc<LoopState>),
    Function(Function),
    /// A method of a value that is not called yet.
    Method(Rc<(Value, Text)>),
    Joiner(Rc<Joiner>),
    Cycler(Rc<Cycler>),
}

/// Why there is no value.
#[derive(Clone)]
pub enum Missing {
    Hint(&'static str),
    Name(Text),
    Attribute(&'static str, Text),
    Element(&'static str),
    Unsafe(&'static str, Text),
}

#[derive(Clone, Copy, PartialEq)]
pub enum View {
    Keys,
    Values,
    Items,
}

/// A macro, or the body of a call block, and the scope in which it stands.
#[derive(Clone, Copy, PartialEq)]
pub struct MacroRef {
    pub index: usize,
    pub scope: usize,
}

/// A function that every template knows.
#[derive(Clone, Copy, PartialEq)]
pub enum Function {
    Range,
    Dict,
    Fromkeys,
    Namespace,
    Joiner,
    Cycler,
    RaiseException,
    StrftimeNow,
}

/// Gives a separator from the second call on.
pub struct Joiner {
    pub separator: Text,
    pub used: Cell<bool>,
}

/// Gives one of its items after the other.
pub struct Cycler {
    pub items: List,
    pub at: Cell<usize>,
}

/// An iterator, which is consumed once.
pub struct Generator {
    items: List,
    at: Cell<usize>,
}

/// `range(…)`
#[derive(Clone, Copy)]
pub struct RangeObject {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
}

/// A list or a tuple.
#[derive(Clone)]
pub struct List(Rc<Items>);

struct Items {
    items: Vec<Value>,
    depth: usize,
    /// The names of a named tuple's items.
    fields: &'static [&'static str],
    _held: HeldMemory,
}

/// Memory that a list takes beside its items.
const LIST_BYTES: usize = 80;

impl List {
    pub fn new(budget: &RenderBudget, items: Vec<Value>) -> Outcome<Self> {
        Self::with_fields(budget, items, &[])
    }

    pub fn with_fields(budget: &RenderBudget, items: Vec<Value>, fields: &'static [&'static str]) -> Outcome<Self> {
        let depth = nesting(items.iter())?;
        let held = budget.hold(items.capacity() * size_of::<Value>() + LIST_BYTES)?;
        budget.work(1 + items.len())?;
        Ok(Self(Rc::new(Items { items, depth, fields, _held: held })))
    }

    pub fn depth(&self) -> usize {
        self.0.depth
    }

    pub fn fields(&self) -> &'static [&'static str] {
        self.0.fields
    }

    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl std::ops::Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0.items
    }
}

/// How deep a value of these is nested.
pub fn nesting<'a>(items: impl Iterator<Item = &'a Value>) -> Outcome<usize> {
    let depth = 1 + items.map(Value::depth).max().unwrap_or(0);
    if depth > MAX_VALUE_DEPTH {
        return fail(format!("a value is nested more than {MAX_VALUE_DEPTH} deep"));
    }
    Ok(depth)
}

impl Generator {
    pub fn value(items: List) -> Value {
        Value::Generator(Rc::new(Self { items, at: Cell::new(0) }))
    }

    /// The next item.
    pub fn next(&self) -> Option<Value> {
        let item = self.items.get(self.at.get()).cloned();
        self.at.set(self.at.get() + usize::from(item.is_some()));
        item
    }

    /// All items that are left.
    pub fn rest(&self, budget: &RenderBudget) -> Outcome<List> {
        let at = self.at.replace(self.items.len());
        if at == 0 { Ok(self.items.clone()) } else { List::new(budget, self.items[at..].to_vec()) }
    }
}

impl RangeObject {
    pub fn len(&self) -> usize {
        let (start, stop, step) = (i128::from(self.start), i128::from(self.stop), i128::from(self.step));
        let (from, to) = if step > 0 { (start, stop) } else { (stop, start) };
        if from >= to { 0 } else { usize::try_from((to - from - 1) / step.abs() + 1).unwrap_or(usize::MAX) }
    }

    pub fn get(&self, index: usize) -> i128 {
        i128::from(self.start) + index as i128 * i128::from(self.step)
    }

    pub fn contains(&self, number: i128) -> bool {
        let (first, last) = (self.get(0), self.get(self.len().saturating_sub(1)));
        self.len() > 0
            && number >= first.min(last)
            && number <= first.max(last)
            && (number - first) % i128::from(self.step) == 0
    }
}

impl Value {
    pub fn text(budget: &RenderBudget, text: impl Into<Box<str>>) -> Outcome<Self> {
        Text::new(budget, text).map(Self::Text)
    }

    pub fn list(budget: &RenderBudget, items: Vec<Self>) -> Outcome<Self> {
        List::new(budget, items).map(Self::List)
    }

    pub fn tuple(budget: &RenderBudget, items: Vec<Self>) -> Outcome<Self> {
        List::new(budget, items).map(Self::Tuple)
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// How deep it is nested; a scalar has no depth.
    pub fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth(),
            Self::Dict(dict) | Self::View(_, dict) => dict.depth(),
            Self::Generator(generator) => generator.items.depth(),
            Self::Loop(state) => state.depth(),
            Self::Cycler(cycler) => cycler.items.depth(),
            Self::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    /// `bool(value)`
    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.is_empty(),
            Self::Range(steps) => steps.len() > 0,
            _ => true,
        }
    }

    /// The name of its type in Python.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(text) if text.is_markup() => "Markup",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Generator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
            Self::Joiner(_) => "Joiner",
            Self::Cycler(_) => "Cycler",
        }
    }

    /// A whole number, as which Python takes truth values, too.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&Text> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The length of a value that has one without being iterated.
    pub fn len(&self) -> Outcome<usize> {
        Ok(match self {
            Self::Undefined(_) => 0,
            Self::Text(text) => text.char_count()?,
            Self::List(items) | Self::Tuple(items) => items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.len(),
            Self::Range(steps) => steps.len(),
            Self::Loop(state) if !state.is_filtered() => state.items().len(),
            other => return fail(format!("object of type '{}' has no len()", other.type_name())),
        })
    }

    /// All items, in a list.
    pub fn items(&self, budget: &RenderBudget) -> Outcome<List> {
        let items = match self {
            Self::List(items) | Self::Tuple(items) => return Ok(items.clone()),
            Self::Generator(generator) => return generator.rest(budget),
            Self::Undefined(_) => Vec::new(),
            Self::Text(text) => {
                let mut ends = text.char_indices().map(|(at, c)| at..at + c.len_utf8());
                ends.try_fold(Vec::new(), |mut items, range| {
                    items.push(Self::Text(text.slice(range)?));
                    Ok(items)
                })?
            }
            Self::Dict(dict) | Self::View(View::Keys, dict) => dict.iter().map(|(key, _)| key.clone()).collect(),
            Self::View(View::Values, dict) => dict.iter().map(|(_, value)| value.clone()).collect(),
            Self::View(View::Items, dict) => {
                let pair = |(key, value): &(Self, Self)| Self::tuple(budget, vec![key.clone(), value.clone()]);
                dict.iter().map(pair).collect::<Outcome<_>>()?
            }
            Self::Range(steps) => {
                budget.work(steps.len())?;
                (0..steps.len()).map(|index| Self::Int(steps.get(index))).collect()
            }
            other => return fail(format!("'{}' object is not iterable", other.type_name())),
        };
        List::new(budget, items)
    }

    /// The error of using an undefined value.
    pub fn check_defined(&self) -> Outcome<()> {
        match self {
            Self::Undefined(missing) => fail(missing.message()),
            _ => Ok(()),
        }
    }
}

impl Missing {
    pub fn message(&self) -> String {
        match self {
            Self::Hint(hint) => (*hint).to_owned(),
            Self::Name(name) if &**name == "lipsum" => "lipsum() is not supported: its text is random".to_owned(),
            Self::Name(name) => format!("'{}' is undefined", &**name),
            Self::Attribute(kind, name) => {
                format!("'{} object' has no attribute '{}'", kind, excerpt(name))
            }
            Self::Element(kind) => format!("{kind} object has no such element"),
            Self::Unsafe(kind, name) => {
                format!("access to attribute '{}' of '{kind}' object is unsafe.", excerpt(name))
            }
        }
    }
}

/// The beginning of a text, short enough for a message.
pub fn excerpt(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(at, _)| &text[..at])
}
