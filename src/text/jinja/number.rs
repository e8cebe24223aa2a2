//! Numbers: how they are read and written, and arithmetic as Python has it.

use super::{
    budget::{Outcome, fail},
    lexer::LexToken,
    value::Value,
};

/// The number literal that a text begins with, and its length. Behind a dot it is no fraction.
pub fn literal(text: &str, after_dot: bool) -> Outcome<(LexToken, usize)> {
    let whole = digits(text, 10);
    if !after_dot {
        let fraction = match text[whole..].strip_prefix('.').map(|rest| digits(rest, 10)) {
            Some(len) if len > 0 => 1 + len,
            _ => 0,
        };
        let rest = &text[whole + fraction..];
        let exponent = match rest.strip_prefix(['e', 'E']) {
            Some(rest) => {
                let sign = usize::from(rest.starts_with(['+', '-']));
                Some(digits(&rest[sign..], 10)).filter(|len| *len > 0).map_or(0, |len| 1 + sign + len)
            }
            None => 0,
        };
        let len = whole + fraction + exponent;
        if len > whole {
            let number = text[..len].replace('_', "").parse();
            return number.map_or_else(|_| fail("bad number"), |number| Ok((LexToken::Float(number), len)));
        }
    }
    let based = [("0b", 2), ("0o", 8), ("0x", 16)].into_iter().find_map(|(prefix, radix)| {
        let rest = text.get(2..).filter(|_| text[..2].eq_ignore_ascii_case(prefix))?;
        let skipped = usize::from(rest.starts_with('_'));
        let len = skipped + digits(&rest[skipped..], radix);
        (len > skipped).then_some((radix, 2, 2 + len))
    });
    let (radix, start, end) = match based {
        Some(found) => found,
        None if text.starts_with('0') => (10, 0, zeros(text)),
        None => (10, 0, whole),
    };
    match i128::from_str_radix(&text[start..end].replace('_', ""), radix) {
        Ok(number) => Ok((LexToken::Int(number), end)),
        Err(_) => fail("a number is greater than 128 bits hold"),
    }
}

/// The length of the digits, with single underscores between them, that a text begins with.
fn digits(text: &str, radix: u32) -> usize {
    let (mut len, mut was_digit) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '_' if was_digit => was_digit = false,
            _ if c.is_digit(radix) => {
                was_digit = true;
                len = at + 1;
            }
            _ => break,
        }
    }
    len
}

fn zeros(text: &str) -> usize {
    let end = text.find(|c| c != '0' && c != '_').unwrap_or(text.len());
    digits(&text[..end], 10)
}

/// `repr` of a float: the fewest digits, with an exponent below 1e-4 and from 1e16 on.
pub fn float_repr(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if number == 0.0 || (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// A number, for arithmetic.
#[derive(Clone, Copy)]
pub enum PyNumber {
    Int(i128),
    Float(f64),
}

impl PyNumber {
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => Some(Self::Float(*number)),
            other => other.as_int().map(Self::Int),
        }
    }

    pub fn float(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    pub fn value(self) -> Value {
        match self {
            Self::Int(number) => Value::Int(number),
            Self::Float(number) => Value::Float(number),
        }
    }
}

const TOO_GREAT: &str = "a whole number is greater than 128 bits hold";

fn whole(result: Option<i128>) -> Outcome<PyNumber> {
    result.map_or_else(|| fail(TOO_GREAT), |number| Ok(PyNumber::Int(number)))
}

/// `a operator b`
pub fn arithmetic(operator: &str, a: PyNumber, b: PyNumber) -> Outcome<PyNumber> {
    let (PyNumber::Int(x), PyNumber::Int(y)) = (a, b) else {
        return float_arithmetic(operator, a.float(), b.float()).map(PyNumber::Float);
    };
    match operator {
        "+" => whole(x.checked_add(y)),
        "-" => whole(x.checked_sub(y)),
        "*" => whole(x.checked_mul(y)),
        "/" if y == 0 => fail("division by zero"),
        "/" => Ok(PyNumber::Float(x as f64 / y as f64)),
        "//" | "%" if y == 0 => fail("integer division or modulo by zero"),
        "//" => {
            let (quotient, rest) = (x.checked_div(y), x.wrapping_rem(y));
            whole(quotient.map(|quotient| quotient - i128::from(rest != 0 && (rest < 0) != (y < 0))))
        }
        "%" => {
            let rest = x.wrapping_rem(y);
            Ok(PyNumber::Int(if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }))
        }
        _ if y < 0 => float_arithmetic(operator, x as f64, y as f64).map(PyNumber::Float),
        _ => match u32::try_from(y) {
            Ok(power) => whole(x.checked_pow(power)),
            Err(_) if x.abs() <= 1 => Ok(PyNumber::Int(if y % 2 == 0 { x * x } else { x })),
            Err(_) => fail(TOO_GREAT),
        },
    }
}

fn float_arithmetic(operator: &str, x: f64, y: f64) -> Outcome<f64> {
    let modulo = || {
        let rest = x % y;
        match rest {
            0.0 => 0f64.copysign(y),
            rest if (rest < 0.0) != (y < 0.0) => rest + y,
            rest => rest,
        }
    };
    Ok(match operator {
        "+" => x + y,
        "-" => x - y,
        "*" => x * y,
        "/" | "//" | "%" if y == 0.0 => return fail("float division by zero"),
        "/" => x / y,
        "//" => ((x - modulo()) / y).round(),
        "%" => modulo(),
        _ if x == 0.0 && y < 0.0 => return fail("0.0 cannot be raised to a negative power"),
        _ if x < 0.0 && x.is_finite() && y.is_finite() && y.fract() != 0.0 => {
            return fail("complex numbers are not supported");
        }
        _ => match x.powf(y) {
            result if result.is_infinite() && x.is_finite() && y.is_finite() => {
                return fail("(34, 'Numerical result out of range')");
            }
            result => result,
        },
    })
}

/// `int(text, base)`
pub fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(super::lexer::is_space);
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |prefix: &str, radix: u32| {
        let rest = unsigned.get(2..).filter(|_| unsigned[..2].eq_ignore_ascii_case(prefix));
        rest.filter(|_| base == radix || base == 0).map(|rest| (rest.strip_prefix('_').unwrap_or(rest), radix))
    };
    let (body, radix) = prefixed("0b", 2)
        .or_else(|| prefixed("0o", 8))
        .or_else(|| prefixed("0x", 16))
        .unwrap_or((unsigned, if base == 0 { 10 } else { base }));
    if body.is_empty() || digits(body, radix) != body.len() {
        return None;
    }
    let number = i128::from_str_radix(&body.replace('_', ""), radix).ok()?;
    Some(if negative { -number } else { number })
}

/// `float(text)`
pub fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(super::lexer::is_space);
    let odd = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    if odd || !text.contains('_') {
        return text.parse().ok();
    }
    text.replace('_', "").parse().ok()
}

/// `round(number, digits)`: halves of the decimal form go to the even neighbor.
pub fn round(number: f64, digits: i128) -> f64 {
    if !number.is_finite() || digits > 300 {
        return number;
    }
    if digits < 0 {
        let unit = 10f64.powi(i32::try_from(-digits).unwrap_or(i32::MAX).min(400));
        return if unit.is_finite() { (number / unit).round_ties_even() * unit } else { 0.0 * number };
    }
    // Rust writes the nearest decimal of the exact value, and of two the even one, as Python does.
    format!("{number:.*}", digits as usize).parse().unwrap_or(number)
}
