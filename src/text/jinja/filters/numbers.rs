//! Filters of numbers.

use super::super::{
    args::Args,
    budget::{Outcome, fail},
    number::{self, PyNumber, parse_float, parse_int},
    value::Value,
    vm::Vm,
};

pub fn abs(_: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [] = args.bind("abs", [])?;
    value.check_defined()?;
    match PyNumber::of(&value) {
        Some(PyNumber::Int(number)) => Ok(Value::Int(number.saturating_abs())),
        Some(PyNumber::Float(number)) => Ok(Value::Float(number.abs())),
        None => fail(format!("bad operand type for abs(): '{}'", value.type_name())),
    }
}

/// The number, or the default, 0, for a value that is none.
pub fn int(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    value.check_defined()?;
    let base = base.and_then(|base| base.as_int()).and_then(|base| u32::try_from(base).ok());
    let base = base.filter(|base| *base == 0 || (2..=36).contains(base)).unwrap_or(10);
    let found = match &value {
        Value::Text(text) => {
            vm.budget.scan(4 * text.len())?;
            parse_int(text, base).or_else(|| parse_float(text).and_then(whole))
        }
        other => match PyNumber::of(other) {
            Some(PyNumber::Int(number)) => Some(number),
            Some(PyNumber::Float(number)) => whole(number),
            None => None,
        },
    };
    Ok(found.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
}

/// The integer part of a finite number.
fn whole(number: f64) -> Option<i128> {
    (number.is_finite() && number.abs() < 1e38).then_some(number as i128)
}

/// The number, or the default, 0.0, for a value that is none.
pub fn float(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [default] = args.bind("float", ["default"])?;
    value.check_defined()?;
    let found = match &value {
        Value::Text(text) => {
            vm.budget.scan(4 * text.len())?;
            parse_float(text)
        }
        other => PyNumber::of(other).map(PyNumber::float),
    };
    Ok(found.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
}

pub fn round(_: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = precision.unwrap_or(Value::Int(0)).as_int();
    let Some(precision) = precision else { return fail("the precision of round must be a whole number") };
    value.check_defined()?;
    let Some(number) = PyNumber::of(&value) else {
        return fail(format!("type {} doesn't define __round__ method", value.type_name()));
    };
    let method = match &method {
        None => "common",
        Some(Value::Text(method)) => method,
        Some(_) => "",
    };
    let scaled = |round: fn(f64) -> f64| {
        let unit = number::arithmetic("**", PyNumber::Int(10), PyNumber::Int(precision))?;
        let scaled = round(number::arithmetic("*", number, unit)?.float());
        match whole(scaled) {
            Some(scaled) => number::arithmetic("/", PyNumber::Int(scaled), unit).map(PyNumber::value),
            None => fail("cannot convert float to integer"),
        }
    };
    match (method, number) {
        ("ceil", _) => scaled(f64::ceil),
        ("floor", _) => scaled(f64::floor),
        ("common", PyNumber::Int(number)) if precision >= 0 => Ok(Value::Int(number)),
        ("common", PyNumber::Int(int)) => {
            let Some(unit) = u32::try_from(-precision).ok().and_then(|power| 10i128.checked_pow(power)) else {
                return Ok(Value::Int(0));
            };
            let (low, rest) = (int.div_euclid(unit), int.rem_euclid(unit));
            let up = rest * 2 > unit || rest * 2 == unit && low % 2 != 0;
            Ok(Value::Int((low + i128::from(up)).saturating_mul(unit)))
        }
        ("common", PyNumber::Float(float)) => Ok(Value::Float(number::round(float, precision))),
        _ => fail("method must be common, ceil or floor"),
    }
}

pub fn filesizeformat(vm: &mut Vm<'_>, value: Value, args: Args) -> Outcome<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"])?;
    value.check_defined()?;
    let bytes = match &value {
        Value::Text(text) => parse_float(text),
        other => PyNumber::of(other).map(PyNumber::float),
    };
    let Some(bytes) = bytes else { return fail("could not convert value to float") };
    let is_binary = binary.is_some_and(|binary| binary.is_true());
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return vm.text("1 Byte");
    }
    if bytes < base {
        return vm.text(format!("{} Bytes", bytes as i128));
    }
    let units = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let fits = |at: usize| bytes < base.powi(at as i32 + 2);
    let at = (0..units.len()).find(|at| fits(*at)).unwrap_or(units.len() - 1);
    let unit = if is_binary { format!("{}iB", units[at].to_uppercase()) } else { format!("{}B", units[at]) };
    vm.text(format!("{:.1} {unit}", base * bytes / base.powi(at as i32 + 2)))
}
