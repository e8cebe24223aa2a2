//! The tests behind `is`.

use super::{
    args::Args,
    budget::{Outcome, fail},
    eval::compares,
    filters, letters,
    number::PyNumber,
    operators, repr,
    text::Text,
    value::Value,
    vm::Vm,
};

const TESTS: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

pub fn is_test(name: &str) -> bool {
    TESTS.contains(&name)
}

/// `value is name(…)`
pub fn apply(vm: &mut Vm<'_>, name: &str, value: Value, args: Args) -> Outcome<bool> {
    vm.budget.work(1)?;
    match name {
        "==" | "eq" | "equalto" => compared(vm, "==", &value, args),
        "!=" | "ne" => compared(vm, "!=", &value, args),
        "<" | "lt" | "lessthan" => compared(vm, "<", &value, args),
        "<=" | "le" => compared(vm, "<=", &value, args),
        ">" | "gt" | "greaterthan" => compared(vm, ">", &value, args),
        ">=" | "ge" => compared(vm, ">=", &value, args),
        "in" => compared(vm, "in", &value, args),
        "sameas" => {
            let [other] = args.bind(name, ["other"])?;
            is_same(&value, &Args::required(other, name, "other")?, vm)
        }
        "divisibleby" => {
            let [divisor] = args.bind(name, ["num"])?;
            remainder(vm, value, Args::required(divisor, name, "num")?, 0)
        }
        _ => {
            let [] = args.bind(name, [])?;
            is(vm, name, value)
        }
    }
}

fn is(vm: &mut Vm<'_>, name: &str, value: Value) -> Outcome<bool> {
    Ok(match name {
        "odd" => remainder(vm, value, Value::Int(2), 1)?,
        "even" => remainder(vm, value, Value::Int(2), 0)?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => PyNumber::of(&value).is_some(),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "escaped" => matches!(&value, Value::Text(text) if text.is_markup()),
        "lower" | "upper" => {
            let text = repr::to_text(vm, &value)?;
            vm.budget.scan(4 * text.len())?;
            letters::is(&text, if name == "lower" { "islower" } else { "isupper" })
        }
        "sequence" => matches!(
            value,
            Value::Undefined(_) | Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Range(_)
        ),
        "iterable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
                | Value::View(..)
                | Value::Generator(_)
                | Value::Loop(_)
        ),
        "callable" => matches!(
            value,
            // An undefined value is callable in Python, and the call always fails.
            Value::Undefined(_)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Joiner(_)
                | Value::Loop(_)
        ),
        "filter" => matches!(&value, Value::Text(name) if filters::is_filter(name)),
        "test" => matches!(&value, Value::Text(name) if is_test(name)),
        _ => return fail(format!("No test named '{name}'.")),
    })
}

fn compared(vm: &mut Vm<'_>, operator: &str, value: &Value, args: Args) -> Outcome<bool> {
    let [other] = args.bind(operator, ["other"])?;
    compares(vm, operator, value, &Args::required(other, operator, "other")?)
}

/// Whether a division leaves this rest.
fn remainder(vm: &mut Vm<'_>, value: Value, divisor: Value, rest: i128) -> Outcome<bool> {
    let found = operators::binary(vm, "%", value, divisor)?;
    super::compare::equal(&vm.budget, &found, &Value::Int(rest))
}

/// Whether two values are one. Python has each small number and short word once.
fn is_same(a: &Value, b: &Value, vm: &Vm<'_>) -> Outcome<bool> {
    Ok(match (a, b) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => a.is_same(b),
        (Value::Dict(a), Value::Dict(b)) => a.is_same(b),
        (Value::Text(a), Value::Text(b)) => Text::eq(a, b),
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Float(_) | Value::Int(_) | Value::Bool(_), _) => false,
        _ => super::compare::equal(&vm.budget, a, b)?,
    })
}
