//! The functions that every template knows.

use std::{cell::Cell, fmt::Write as _, rc::Rc};

use super::{
    args::Args,
    budget::{JinjaError, Outcome, fail},
    dict::{Dict, DictBuilder},
    repr,
    text::Text,
    value::{Cycler, Function, Joiner, List, RangeObject, Value},
    vm::Vm,
};

/// Items that a range may have in Jinja's sandbox.
const MAX_RANGE: usize = 100_000;
/// Bytes that the format of a date may have.
const MAX_DATE_FORMAT_BYTES: usize = 4096;

/// The function of a name.
pub fn function(name: &str) -> Option<Function> {
    Some(match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "joiner" => Function::Joiner,
        "cycler" => Function::Cycler,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        _ => return None,
    })
}

pub fn call(vm: &mut Vm<'_>, function: Function, args: Args) -> Outcome<Value> {
    vm.budget.work(1)?;
    match function {
        Function::Range => range(args),
        Function::Dict => dict(vm, args, "dict").map(Value::Dict),
        Function::Fromkeys => fromkeys(vm, args),
        Function::Namespace => {
            let dict = dict(vm, args, "namespace")?;
            let namespace = vm.new_namespace()?;
            for (name, value) in dict.iter() {
                let Value::Text(name) = name else { return fail("attribute names must be strings") };
                vm.set_in_namespace(namespace, name.clone(), value.clone())?;
            }
            Ok(Value::Namespace(namespace))
        }
        Function::Joiner => {
            let [separator] = args.bind("joiner", ["sep"])?;
            let separator = match separator {
                Some(separator) => repr::to_text(vm, &separator)?,
                None => Text::new(&vm.budget, ", ")?,
            };
            Ok(Value::Joiner(Rc::new(Joiner { separator, used: Cell::new(false) })))
        }
        Function::Cycler => {
            let items = List::new(&vm.budget, args.positional_only("cycler")?)?;
            if items.is_empty() {
                return fail("at least one item has to be provided");
            }
            Ok(Value::Cycler(Rc::new(Cycler { items, at: Cell::new(0) })))
        }
        Function::RaiseException => {
            let [message] = args.bind("raise_exception", ["message"])?;
            let message = Args::required(message, "raise_exception", "message")?;
            Err(JinjaError { reason: repr::to_text(vm, &message)?.to_string(), raised: true })
        }
        Function::StrftimeNow => {
            let [format] = args.bind("strftime_now", ["format"])?;
            match Args::required(format, "strftime_now", "format")? {
                Value::Text(format) => strftime(vm, &format),
                other => fail(format!("strftime() argument 1 must be str, not {}", other.type_name())),
            }
        }
    }
}

fn range(args: Args) -> Outcome<Value> {
    let bounds = args.positional_only("range")?;
    let bound = |value: &Value| {
        value.check_defined()?;
        match value.as_int().map(i64::try_from) {
            Some(Ok(number)) => Ok(number),
            Some(Err(_)) => fail("Range too big."),
            None => fail(format!("'{}' object cannot be interpreted as an integer", value.type_name())),
        }
    };
    let (start, stop, step) = match &bounds[..] {
        [stop] => (0, bound(stop)?, 1),
        [start, stop] => (bound(start)?, bound(stop)?, 1),
        [start, stop, step] => (bound(start)?, bound(stop)?, bound(step)?),
        _ => return fail(format!("range expected 1 to 3 arguments, got {}", bounds.len())),
    };
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    let steps = RangeObject { start, stop, step };
    if steps.len() > MAX_RANGE {
        return fail(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."));
    }
    Ok(Value::Range(steps))
}

/// `dict(mapping or pairs, **entries)`
fn dict(vm: &mut Vm<'_>, args: Args, function: &str) -> Outcome<Dict> {
    let mut dict = DictBuilder::new(&vm.budget)?;
    match &args.positional[..] {
        [] => {}
        [Value::Dict(entries)] => dict.extend(entries)?,
        [pairs] => {
            for pair in pairs.items(&vm.budget)?.iter() {
                match &pair.items(&vm.budget)?[..] {
                    [key, value] => dict.insert(key.clone(), value.clone()).map(drop)?,
                    other => {
                        let found = other.len();
                        return fail(format!("dictionary update sequence has length {found}; 2 is required"));
                    }
                }
            }
        }
        more => return fail(format!("{function} expected at most 1 argument, got {}", more.len())),
    }
    for (name, value) in args.keywords {
        dict.insert(Value::Text(name), value)?;
    }
    dict.finish()
}

fn fromkeys(vm: &mut Vm<'_>, args: Args) -> Outcome<Value> {
    let [keys, value] = args.bind("fromkeys", ["iterable", "value"])?;
    let keys = Args::required(keys, "fromkeys", "iterable")?.items(&vm.budget)?;
    let mut dict = DictBuilder::new(&vm.budget)?;
    for key in keys.iter() {
        dict.insert(key.clone(), value.clone().unwrap_or(Value::None))?;
    }
    dict.finish().map(Value::Dict)
}

/// `datetime.now().strftime(format)`
fn strftime(vm: &mut Vm<'_>, format: &Text) -> Outcome<Value> {
    vm.budget.work(1 + format.len())?;
    if format.len() > MAX_DATE_FORMAT_BYTES {
        return fail(format!("the format of a date is longer than {MAX_DATE_FORMAT_BYTES} bytes"));
    }
    let now = vm.now.unwrap_or_else(|| chrono::Local::now().naive_local());
    let mut text = String::new();
    if write!(text, "{}", now.format(&chrono_format(format))).is_err() {
        return fail("strftime_now has a format that is not known");
    }
    format.derived(text).map(Value::Text)
}

/// The format of chrono for a time without a zone.
fn chrono_format(format: &str) -> String {
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('f') => out.push_str("%6f"),
                Some('z' | 'Z') => {}
                Some(other) => out.extend(['%', other]),
                None => out.push_str("%%"),
            },
        }
    }
    out
}
