//! The methods of values.

use super::{
    args::Args,
    attributes,
    budget::{Outcome, fail},
    compare, globals, strings,
    text::Text,
    value::{Function, List, Value, View},
    vm::Vm,
};

const LIST: [&str; 3] = ["copy", "count", "index"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
/// Methods that Jinja's sandbox refuses, since they change their object.
const LIST_MUTATORS: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const DICT_MUTATORS: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

pub fn is_mutator(value: &Value, name: &str) -> bool {
    match value {
        Value::List(_) => LIST_MUTATORS.contains(&name),
        Value::Dict(_) => DICT_MUTATORS.contains(&name),
        _ => false,
    }
}

pub fn is_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Text(_) => strings::METHODS.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) | Value::Range(_) => LIST[1..].contains(&name),
        Value::Dict(_) => DICT.contains(&name),
        Value::Function(Function::Dict) => name == "fromkeys",
        Value::Cycler(_) => ["next", "reset"].contains(&name),
        Value::Loop(_) => ["cycle", "changed"].contains(&name),
        Value::Int(_) | Value::Bool(_) => ["bit_length", "conjugate", "is_integer"].contains(&name),
        Value::Float(_) => ["is_integer", "conjugate"].contains(&name),
        _ => false,
    }
}

/// Calls a method that the value has.
pub fn call(vm: &mut Vm<'_>, value: &Value, name: &Text, args: Args) -> Outcome<Value> {
    vm.budget.work(1)?;
    match value {
        Value::Text(text) => strings::call(vm, text, name, args),
        Value::List(items) => list_method(vm, value, items, name, args),
        Value::Tuple(items) => list_method(vm, value, items, name, args),
        Value::Range(_) => {
            let items = value.items(&vm.budget)?;
            list_method(vm, value, &items, name, args)
        }
        Value::Dict(_) => dict_method(vm, value, name, args),
        Value::Loop(state) => vm.loop_method(state, name, args),
        Value::Function(_) => globals::call(vm, Function::Fromkeys, args),
        Value::Cycler(cycler) => {
            let [] = args.bind(name, [])?;
            let at = if &**name == "next" { cycler.at.get() } else { cycler.items.len() - 1 };
            cycler.at.set((at + 1) % cycler.items.len());
            Ok(if &**name == "next" { cycler.items[at].clone() } else { Value::None })
        }
        Value::Int(_) | Value::Bool(_) => {
            let [] = args.bind(name, [])?;
            let number = value.as_int().unwrap_or_default();
            Ok(match &**name {
                "bit_length" => Value::Int(i128::from(128 - number.unsigned_abs().leading_zeros())),
                "is_integer" => Value::Bool(true),
                _ => Value::Int(number),
            })
        }
        Value::Float(number) => {
            let [] = args.bind(name, [])?;
            let is_integer = Value::Bool(number.fract() == 0.0);
            Ok(if &**name == "is_integer" { is_integer } else { value.clone() })
        }
        other => fail(format!("'{}' object has no method '{}'", other.type_name(), &**name)),
    }
}

fn list_method(vm: &mut Vm<'_>, list: &Value, items: &List, name: &str, args: Args) -> Outcome<Value> {
    match name {
        "copy" => {
            let [] = args.bind(name, [])?;
            Ok(list.clone())
        }
        "count" => {
            let [wanted] = args.bind(name, ["value"])?;
            let wanted = Args::required(wanted, name, "value")?;
            let mut count = 0;
            for item in items.iter() {
                count += i128::from(compare::equal(&vm.budget, item, &wanted)?);
            }
            Ok(Value::Int(count))
        }
        _ => {
            let [wanted, start, stop] = args.bind(name, ["value", "start", "stop"])?;
            let wanted = Args::required(wanted, name, "value")?;
            let bounds = [start.unwrap_or(Value::None), stop.unwrap_or(Value::None)];
            let range = strings::bounds(&bounds, items.len())?;
            for at in range.clone() {
                if compare::equal(&vm.budget, &items[at], &wanted)? {
                    return Ok(Value::Int(at as i128));
                }
            }
            fail(format!("{} is not in {}", attributes::describe_key(&wanted), list.type_name()))
        }
    }
}

fn dict_method(vm: &mut Vm<'_>, value: &Value, name: &str, args: Args) -> Outcome<Value> {
    let Value::Dict(dict) = value else { return fail("a dict is needed") };
    match name {
        "get" => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let key = Args::required(key, name, "key")?;
            Ok(match dict.get(&vm.budget, &key)? {
                Some(found) => found.clone(),
                None => default.unwrap_or(Value::None),
            })
        }
        "fromkeys" => globals::call(vm, Function::Fromkeys, args),
        _ => {
            let [] = args.bind(name, [])?;
            Ok(match name {
                "copy" => value.clone(),
                "keys" => Value::View(View::Keys, dict.clone()),
                "values" => Value::View(View::Values, dict.clone()),
                _ => Value::View(View::Items, dict.clone()),
            })
        }
    }
}
