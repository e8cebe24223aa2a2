//! Attributes, items and slices of values, as Jinja's sandbox gives them.

use std::rc::Rc;

use super::{
    budget::{Outcome, fail},
    methods,
    text::{Text, TextBuilder},
    value::{List, Missing, RangeObject, Value, excerpt},
    vm::Vm,
};

/// `value.name`: an attribute, or else the item of that key.
pub fn attribute(vm: &mut Vm<'_>, value: &Value, name: &Text) -> Outcome<Value> {
    value.check_defined()?;
    if let Some(found) = own_attribute(vm, value, name)? {
        return Ok(found);
    }
    match value {
        Value::Dict(dict) => match dict.get(&vm.budget, &Value::Text(name.clone()))? {
            Some(found) => Ok(found.clone()),
            None => Ok(missing(value, name)),
        },
        _ => Ok(missing(value, name)),
    }
}

fn missing(value: &Value, name: &Text) -> Value {
    let kind = if matches!(value, Value::None) { "None" } else { value.type_name() };
    Value::Undefined(Missing::Attribute(kind, name.clone()))
}

/// The attributes of a value besides its items.
fn own_attribute(vm: &mut Vm<'_>, value: &Value, name: &Text) -> Outcome<Option<Value>> {
    if name.starts_with("__") || methods::is_mutator(value, name) {
        return Ok(Some(Value::Undefined(Missing::Unsafe(value.type_name(), name.clone()))));
    }
    let found = match value {
        Value::Namespace(number) => {
            let values = vm.namespace(*number);
            vm.budget.work(1 + values.len())?;
            vm.budget.scan(name.len())?;
            values.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
        }
        Value::Loop(state) => vm.loop_attribute(state, name)?,
        Value::Tuple(items) if !items.fields().is_empty() => {
            let at = items.fields().iter().position(|field| *field == &**name);
            at.and_then(|at| items.get(at).cloned())
        }
        Value::Cycler(cycler) if &**name == "current" => cycler.items.get(cycler.at.get()).cloned(),
        Value::Macro(called) => {
            let definition = &vm.template.macros[called.index];
            match &**name {
                "name" => match definition.name {
                    Some(name) => Some(vm.text(&*vm.template.names[name])?),
                    None => Some(Value::None),
                },
                "arguments" => {
                    let names = definition.parameters.iter().map(|(name, _)| vm.text(&*vm.template.names[*name]));
                    Some(Value::tuple(&vm.budget, names.collect::<Outcome<_>>()?)?)
                }
                "catch_varargs" => Some(Value::Bool(definition.takes_arguments)),
                "catch_kwargs" => Some(Value::Bool(definition.takes_keywords)),
                "caller" => Some(Value::Bool(definition.takes_caller)),
                _ => None,
            }
        }
        Value::Int(_) | Value::Bool(_) => match &**name {
            "real" | "numerator" => value.as_int().map(Value::Int),
            "imag" => Some(Value::Int(0)),
            "denominator" => Some(Value::Int(1)),
            _ => None,
        },
        Value::Float(_) => match &**name {
            "real" => Some(value.clone()),
            "imag" => Some(Value::Float(0.0)),
            _ => None,
        },
        _ => None,
    };
    if found.is_some() || !methods::is_method(value, name) {
        return Ok(found);
    }
    vm.budget.work(1)?;
    Ok(Some(Value::Method(Rc::new((value.clone(), name.clone())))))
}

/// `value[key]`: an item, or else the attribute of that name.
pub fn item(vm: &mut Vm<'_>, value: &Value, key: &Value) -> Outcome<Value> {
    value.check_defined()?;
    let found = match value {
        Value::Dict(dict) => {
            let is_key = !matches!(key, Value::List(_) | Value::Dict(_) | Value::View(..));
            if is_key { dict.get(&vm.budget, key)?.cloned() } else { None }
        }
        Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => match key.as_int() {
            Some(index) => at(value, index)?,
            None => None,
        },
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    match key {
        Value::Text(name) => {
            let own = own_attribute(vm, value, name)?;
            Ok(own.unwrap_or_else(|| missing(value, name)))
        }
        _ => Ok(Value::Undefined(Missing::Element(value.type_name()))),
    }
}

/// The item at an index, which counts from the end if it is negative.
fn at(value: &Value, index: i128) -> Outcome<Option<Value>> {
    let len = value.len()?;
    let index = if index < 0 { index + len as i128 } else { index };
    let Some(index) = usize::try_from(index).ok().filter(|index| *index < len) else { return Ok(None) };
    Ok(match value {
        Value::Text(text) => {
            let start = text.byte_of(index)?;
            let end = start + text[start..].chars().next().map_or(0, char::len_utf8);
            Some(Value::Text(text.slice(start..end)?))
        }
        Value::List(items) | Value::Tuple(items) => items.get(index).cloned(),
        Value::Range(steps) => Some(Value::Int(steps.get(index))),
        _ => None,
    })
}

/// `value[start:stop:step]`
pub fn slice(vm: &mut Vm<'_>, value: &Value, bounds: &[Value; 3]) -> Outcome<Value> {
    value.check_defined()?;
    let nothing = Value::Undefined(Missing::Element(value.type_name()));
    let is_sliced = matches!(value, Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_));
    let is_bound = |bound: &Value| matches!(bound, Value::None) || bound.as_int().is_some();
    if !is_sliced || !bounds.iter().all(is_bound) {
        return Ok(nothing);
    }
    let Some(slice) = Slice::of(value.len()?, bounds)? else { return fail("slice step cannot be zero") };
    match value {
        Value::Text(text) => slice_text(text, &slice).map(Value::Text),
        Value::Range(steps) => {
            let clamp = |at: i128| i64::try_from(steps.get(0) + at * i128::from(steps.step)).unwrap_or(i64::MAX);
            let step = slice.step.saturating_mul(i128::from(steps.step));
            let step = i64::try_from(step).unwrap_or(if step < 0 { i64::MIN } else { i64::MAX });
            Ok(Value::Range(RangeObject { start: clamp(slice.start), stop: clamp(slice.stop), step }))
        }
        Value::List(items) => List::new(&vm.budget, slice.of_items(items)).map(Value::List),
        Value::Tuple(items) => List::new(&vm.budget, slice.of_items(items)).map(Value::Tuple),
        _ => Ok(nothing),
    }
}

/// A slice of something with a length: all in it is there.
struct Slice {
    start: i128,
    stop: i128,
    step: i128,
    len: usize,
}

impl Slice {
    fn of(len: usize, bounds: &[Value; 3]) -> Outcome<Option<Self>> {
        let len = len as i128;
        let step = bounds[2].as_int().unwrap_or(1);
        if step == 0 {
            return Ok(None);
        }
        let (least, most) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let bound = |bound: &Value, default: i128| match bound.as_int() {
            Some(at) if at < 0 => at.saturating_add(len).clamp(least, most),
            Some(at) => at.clamp(least, most),
            None => default,
        };
        let (first, last) = if step > 0 { (least, most) } else { (most, least) };
        let (start, stop) = (bound(&bounds[0], first), bound(&bounds[1], last));
        let distance = if step > 0 { stop - start } else { start - stop };
        let count = if distance <= 0 { 0 } else { (distance - 1) / step.saturating_abs() + 1 };
        Ok(Some(Self { start, stop, step, len: usize::try_from(count).unwrap_or(0) }))
    }

    /// The indices, which are all there.
    fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len).map(|at| (self.start + at as i128 * self.step) as usize)
    }

    fn of_items(&self, items: &[Value]) -> Vec<Value> {
        self.indices().filter_map(|at| items.get(at).cloned()).collect()
    }
}

fn slice_text(text: &Text, slice: &Slice) -> Outcome<Text> {
    if slice.len == 0 {
        return text.slice(0..0);
    }
    if slice.step == 1 {
        let start = text.byte_of(slice.start as usize)?;
        return text.slice(start..text.byte_of(slice.stop as usize)?);
    }
    let budget = text.budget();
    budget.work(text.len() / 4)?;
    let _held = budget.hold(8 * text.len())?;
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let mut out = TextBuilder::new(budget)?;
    for at in slice.indices() {
        let Some(start) = starts.get(at) else { continue };
        out.push_range(text, *start..starts.get(at + 1).copied().unwrap_or(text.len()))?;
    }
    out.finish()
}

/// The value of an attribute path such as `a.b.0`, or of one key.
pub fn path(vm: &mut Vm<'_>, value: &Value, path: &Value) -> Outcome<Value> {
    let Value::Text(names) = path else {
        return if matches!(path, Value::None) { Ok(value.clone()) } else { item(vm, value, path) };
    };
    let mut value = value.clone();
    for name in names.split('.') {
        let key = match name.parse::<i128>() {
            Ok(index) if name.chars().all(|c| c.is_ascii_digit()) => Value::Int(index),
            _ => Value::Text(names.slice_of(name)?),
        };
        value = item(vm, &value, &key)?;
    }
    Ok(value)
}

/// The key of a list in a message.
pub fn describe_key(key: &Value) -> String {
    match key {
        Value::Text(name) => format!("'{}'", excerpt(name)),
        other => other.type_name().to_owned(),
    }
}
