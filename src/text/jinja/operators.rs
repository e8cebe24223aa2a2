//! Operators between two values.

use super::{
    budget::{Outcome, check_text, fail},
    format, html,
    number::{self, PyNumber},
    text::{Text, TextBuilder},
    value::{List, Value},
    vm::Vm,
};

/// `left operator right`
pub fn binary(vm: &mut Vm<'_>, operator: &str, left: Value, right: Value) -> Outcome<Value> {
    vm.budget.work(1)?;
    if let (Some(left), Some(right)) = (PyNumber::of(&left), PyNumber::of(&right)) {
        return number::arithmetic(operator, left, right).map(PyNumber::value);
    }
    if let ("%", Value::Text(text)) = (operator, &left) {
        return format::percent(vm, text, &right).map(Value::Text);
    }
    left.check_defined()?;
    right.check_defined()?;
    match (operator, &left, &right) {
        ("+", Value::Text(a), Value::Text(b)) => add_texts(vm, a, b),
        ("+", Value::List(a), Value::List(b)) => Value::list(&vm.budget, joined(vm, a, b)?),
        ("+", Value::Tuple(a), Value::Tuple(b)) => Value::tuple(&vm.budget, joined(vm, a, b)?),
        ("*", value, count) | ("*", count, value) if count.as_int().is_some() => {
            repeat(vm, value, count.as_int().unwrap_or_default())
        }
        _ => {
            let (left, right) = (left.type_name(), right.type_name());
            fail(format!("unsupported operand type(s) for {operator}: '{left}' and '{right}'"))
        }
    }
}

fn add_texts(vm: &Vm<'_>, a: &Text, b: &Text) -> Outcome<Value> {
    let is_markup = a.is_markup() || b.is_markup();
    let mut out = TextBuilder::new(&vm.budget)?;
    for text in [a, b] {
        if is_markup { out.push(&html::escape(text)?)? } else { out.push(text)? }
    }
    out.finish()?.with_markup(is_markup).map(Value::Text)
}

fn joined(vm: &Vm<'_>, a: &List, b: &List) -> Outcome<Vec<Value>> {
    vm.budget.work(a.len() + b.len())?;
    let _held = vm.budget.hold((a.len() + b.len()) * size_of::<Value>())?;
    Ok([&a[..], &b[..]].concat())
}

fn repeat(vm: &Vm<'_>, value: &Value, count: i128) -> Outcome<Value> {
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    let items = |items: &List| {
        let total = items.len().saturating_mul(count);
        vm.budget.work(total)?;
        let _held = vm.budget.hold(total.saturating_mul(size_of::<Value>()))?;
        Ok(items.iter().cycle().take(total).cloned().collect())
    };
    match value {
        Value::Text(text) => {
            let total = text.len().saturating_mul(count);
            check_text(total)?;
            vm.budget.scan(total)?;
            let _held = vm.budget.hold(total)?;
            let repeated = text.derived(text.repeat(if total == 0 { 0 } else { count }))?;
            repeated.with_markup(text.is_markup()).map(Value::Text)
        }
        Value::List(list) => Value::list(&vm.budget, items(list)?),
        Value::Tuple(list) => Value::tuple(&vm.budget, items(list)?),
        other => fail(format!("can't multiply sequence by non-int of type '{}'", other.type_name())),
    }
}
