//! Equality and order, as Python has them.

use std::cmp::Ordering;

use super::{
    budget::{Outcome, RenderBudget, fail},
    value::Value,
};

/// `a == b`
pub fn equal(budget: &RenderBudget, a: &Value, b: &Value) -> Outcome<bool> {
    budget.work(1)?;
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(a), Value::Text(b)) => {
            budget.scan(a.len().min(b.len()))?;
            a == b
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            a.is_same(b) || a.len() == b.len() && all_equal(budget, a, b)?
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.is_same(b) {
                return Ok(true);
            }
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.iter() {
                match b.get(budget, key)? {
                    Some(other) if equal(budget, value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(a), Value::Range(b)) => {
            a.len() == b.len() && (a.len() == 0 || a.get(0) == b.get(0) && (a.len() == 1 || a.step == b.step))
        }
        (Value::View(a, of), Value::View(b, others)) => a == b && of.is_same(others),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (Value::Macro(a), Value::Macro(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        (Value::Generator(a), Value::Generator(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Method(a), Value::Method(b)) => a.1 == b.1 && equal(budget, &a.0, &b.0)?,
        _ => number_order(a, b) == Some(Ordering::Equal),
    })
}

fn all_equal(budget: &RenderBudget, a: &[Value], b: &[Value]) -> Outcome<bool> {
    for (a, b) in a.iter().zip(b) {
        if !equal(budget, a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The order of two numbers; none if either is no number or not ordered.
fn number_order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a.as_int(), b.as_int(), a, b) {
        (Some(a), Some(b), ..) => Some(a.cmp(&b)),
        (Some(a), _, _, Value::Float(b)) => int_float_order(a, *b),
        (_, Some(b), Value::Float(a), _) => int_float_order(b, *a).map(Ordering::reverse),
        (_, _, Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        _ => None,
    }
}

fn int_float_order(int: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    let whole = float.floor();
    // Beyond all whole numbers, the cast gives the greatest or least one.
    Some(int.cmp(&(whole as i128)).then(if float > whole { Ordering::Less } else { Ordering::Equal }))
}

fn is_number(value: &Value) -> bool {
    matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_))
}

/// The order of two values, which `operator` asks for: nothing for numbers that have none.
pub fn order(budget: &RenderBudget, a: &Value, b: &Value, operator: &str) -> Outcome<Option<Ordering>> {
    budget.work(1)?;
    a.check_defined()?;
    b.check_defined()?;
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            budget.scan(a.len().min(b.len()))?;
            Ok(Some((**a).cmp(&**b)))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(budget, a, b)? {
                    return order(budget, a, b, operator);
                }
            }
            Ok(Some(a.len().cmp(&b.len())))
        }
        _ if is_number(a) && is_number(b) => Ok(number_order(a, b)),
        _ => {
            let (a, b) = (a.type_name(), b.type_name());
            fail(format!("'{operator}' not supported between instances of '{a}' and '{b}'"))
        }
    }
}

/// `item in container`
pub fn contains(budget: &RenderBudget, container: &Value, item: &Value) -> Outcome<bool> {
    let has = |items: &[Value]| {
        for other in items {
            if equal(budget, other, item)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match container {
        Value::Text(text) => match item {
            Value::Text(part) => {
                budget.scan(text.len())?;
                Ok(text.contains(&**part))
            }
            other => fail(format!("'in <string>' requires string as left operand, not {}", other.type_name())),
        },
        Value::Dict(dict) | Value::View(super::value::View::Keys, dict) => Ok(dict.get(budget, item)?.is_some()),
        Value::List(items) | Value::Tuple(items) => has(items),
        Value::Range(steps) => match item {
            Value::Float(number) if number.fract() == 0.0 => Ok(steps.contains(*number as i128)),
            other => Ok(other.as_int().is_some_and(|number| steps.contains(number))),
        },
        Value::Generator(generator) => {
            while let Some(other) = generator.next() {
                if equal(budget, &other, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(_) | Value::View(..) => has(&container.items(budget)?),
        other => fail(format!("argument of type '{}' is not iterable", other.type_name())),
    }
}

/// Sorts by keys; equal ones stay as they are, also in reverse.
pub fn sort(budget: &RenderBudget, items: Vec<(Value, Value)>, reverse: bool) -> Outcome<Vec<Value>> {
    let mut order_of: Vec<usize> = (0..items.len()).collect();
    let _held = budget.hold(items.len() * 2 * size_of::<usize>())?;
    let comes_first = |a: usize, b: usize| -> Outcome<bool> {
        let order = order(budget, &items[a].0, &items[b].0, "<")?;
        Ok(order != Some(if reverse { Ordering::Less } else { Ordering::Greater }))
    };
    let mut width = 1;
    // The order of Rust's own sort may panic where values have none.
    while width < order_of.len() {
        let mut merged = Vec::with_capacity(order_of.len());
        for run in order_of.chunks(2 * width) {
            let (mut left, mut right) = run.split_at(width.min(run.len()));
            while let ([a, left_rest @ ..], [b, right_rest @ ..]) = (left, right) {
                if comes_first(*a, *b)? {
                    merged.push(*a);
                    left = left_rest;
                } else {
                    merged.push(*b);
                    right = right_rest;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        order_of = merged;
        width *= 2;
    }
    Ok(order_of.into_iter().map(|at| items[at].1.clone()).collect())
}
