//! How numbers and texts are laid out: the format specifications of Python.

use super::{
    budget::{Outcome, check_text, fail},
    number::{PyNumber, float_repr},
};

/// Digits that a number may be asked for.
const MAX_PRECISION: usize = 1000;
/// Characters that a field may be wide.
const MAX_WIDTH: usize = 1 << 20;

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
#[derive(Clone, Copy)]
pub struct FormatSpec {
    pub fill: char,
    pub align: Option<char>,
    pub sign: char,
    pub alternate: bool,
    pub width: usize,
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

impl FormatSpec {
    pub const PLAIN: Self = Self {
        fill: ' ',
        align: None,
        sign: '-',
        alternate: false,
        width: 0,
        grouping: None,
        precision: None,
        kind: None,
    };

    pub fn parse(text: &str) -> Outcome<Self> {
        let mut spec = Self::PLAIN;
        let mut rest = text;
        let is_align = |c: &char| matches!(c, '<' | '>' | '=' | '^');
        let mut chars = rest.chars();
        if let (Some(fill), Some(align)) = (chars.next(), chars.next().filter(is_align)) {
            (spec.fill, spec.align, rest) = (fill, Some(align), chars.as_str());
        } else if let Some(align) = rest.chars().next().filter(is_align) {
            (spec.align, rest) = (Some(align), &rest[1..]);
        }
        if let Some(sign) = rest.chars().next().filter(|c| matches!(c, '+' | '-' | ' ')) {
            (spec.sign, rest) = (sign, &rest[1..]);
        }
        rest = rest.strip_prefix('z').unwrap_or(rest);
        if let Some(after) = rest.strip_prefix('#') {
            (spec.alternate, rest) = (true, after);
        }
        if rest.starts_with('0') && spec.align.is_none() {
            (spec.fill, spec.align) = ('0', Some('='));
        }
        (spec.width, rest) = number(rest, MAX_WIDTH)?;
        if let Some(grouping) = rest.chars().next().filter(|c| matches!(c, ',' | '_')) {
            (spec.grouping, rest) = (Some(grouping), &rest[1..]);
        }
        if let Some(after) = rest.strip_prefix('.') {
            if !after.starts_with(|c: char| c.is_ascii_digit()) {
                return fail("Format specifier missing precision");
            }
            let (precision, after) = number(after, MAX_WIDTH)?;
            (spec.precision, rest) = (Some(precision), after);
        }
        let mut kinds = rest.chars();
        spec.kind = kinds.next();
        if kinds.next().is_some() {
            return fail("Invalid format specifier");
        }
        Ok(spec)
    }

    /// Lays a text out.
    pub fn text(&self, text: &str) -> Outcome<String> {
        if !matches!(self.kind, None | Some('s'))
            || self.grouping.is_some()
            || self.align == Some('=') && self.fill != '0'
        {
            return fail("Unknown format code for object of type 'str'");
        }
        let end = self.precision.and_then(|most| text.char_indices().nth(most)).map_or(text.len(), |(at, _)| at);
        let align = if self.align == Some('=') { Some('<') } else { self.align };
        self.padded("", &text[..end], align.unwrap_or('<'))
    }

    /// Lays a number out.
    pub fn number(&self, number: PyNumber) -> Outcome<String> {
        match (number, self.kind) {
            (PyNumber::Int(number), None | Some('d' | 'n' | 'b' | 'o' | 'x' | 'X' | 'c')) => self.int(number),
            (number, None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%')) => self.float(number.float()),
            (_, Some(kind)) => fail(format!("Unknown format code '{kind}' for object of type 'float'")),
        }
    }

    fn int(&self, number: i128) -> Outcome<String> {
        let size = number.unsigned_abs();
        let (prefix, digits) = match self.kind {
            Some('b') => ("0b", format!("{size:b}")),
            Some('o') => ("0o", format!("{size:o}")),
            Some('x') => ("0x", format!("{size:x}")),
            Some('X') => ("0X", format!("{size:X}")),
            Some('c') => match u32::try_from(number).ok().and_then(char::from_u32) {
                Some(c) => return self.padded("", c.encode_utf8(&mut [0; 4]), self.align.unwrap_or('<')),
                None => return fail("%c arg not in range(0x110000)"),
            },
            _ => ("", size.to_string()),
        };
        let every = if prefix.is_empty() { 3 } else { 4 };
        let sign = self.sign_of(number < 0);
        let sign = if self.alternate { format!("{sign}{prefix}") } else { sign.to_owned() };
        self.grouped(&sign, &digits, every)
    }

    fn float(&self, number: f64) -> Outcome<String> {
        let precision = self.precision.unwrap_or(6);
        if precision > MAX_PRECISION {
            return fail(format!("precision {precision} is more than {MAX_PRECISION}"));
        }
        let size = number.abs();
        let digits = match self.kind {
            _ if !size.is_finite() => float_repr(size),
            Some('e' | 'E') => exponential(size, precision),
            Some('f' | 'F') => format!("{size:.precision$}"),
            Some('%') => format!("{:.precision$}%", size * 100.0),
            None if self.precision.is_none() => float_repr(size),
            None => {
                let digits = general(size, precision, self.alternate);
                if digits.contains(['.', 'e']) { digits } else { format!("{digits}.0") }
            }
            _ => general(size, precision, self.alternate),
        };
        let upper = matches!(self.kind, Some('E' | 'F' | 'G'));
        let digits = if upper { digits.to_uppercase() } else { digits };
        self.grouped(self.sign_of(number.is_sign_negative() && !number.is_nan()), &digits, 3)
    }

    fn sign_of(&self, is_negative: bool) -> &'static str {
        match self.sign {
            _ if is_negative => "-",
            '+' => "+",
            ' ' => " ",
            _ => "",
        }
    }

    /// Puts the grouping between the digits before the point.
    fn grouped(&self, sign: &str, digits: &str, every: usize) -> Outcome<String> {
        let align = self.align.unwrap_or('>');
        let Some(grouping) = self.grouping else { return self.padded(sign, digits, align) };
        let whole = digits.find(|c: char| !c.is_ascii_hexdigit() || every == 3 && !c.is_ascii_digit());
        let whole = whole.unwrap_or(digits.len());
        let mut out = String::new();
        // Zeros that fill the field are grouped, too.
        let fills = self.fill == '0' && align == '=';
        let wanted = if fills { self.width.saturating_sub(sign.len() + digits.len() - whole) } else { 0 };
        let mut zeros = 0;
        while whole + zeros + (whole + zeros).saturating_sub(1) / every < wanted {
            zeros += 1;
        }
        for (at, c) in "0".repeat(zeros).chars().chain(digits[..whole].chars()).enumerate() {
            if at > 0 && (whole + zeros - at).is_multiple_of(every) {
                out.push(grouping);
            }
            out.push(c);
        }
        out.push_str(&digits[whole..]);
        self.padded(sign, &out, align)
    }

    fn padded(&self, sign: &str, body: &str, align: char) -> Outcome<String> {
        let missing = self.width.saturating_sub(sign.chars().count() + body.chars().count());
        check_text(missing * self.fill.len_utf8())?;
        let fill = |count: usize| self.fill.to_string().repeat(count);
        Ok(match align {
            '<' => [sign, body, &fill(missing)].concat(),
            '^' => [&fill(missing / 2), sign, body, &fill(missing - missing / 2)].concat(),
            '=' => [sign, &fill(missing), body].concat(),
            _ => [&fill(missing), sign, body].concat(),
        })
    }
}

/// The number that a text begins with, 0 without one, and the rest.
pub fn number(text: &str, most: usize) -> Outcome<(usize, &str)> {
    let len = text.bytes().take_while(u8::is_ascii_digit).count();
    if len == 0 {
        return Ok((0, text));
    }
    match text[..len].parse::<usize>() {
        Ok(number) if number <= most => Ok((number, &text[len..])),
        _ => fail(format!("a width or precision is more than {most}")),
    }
}

/// `%e`
fn exponential(number: f64, precision: usize) -> String {
    let written = format!("{number:.precision$e}");
    let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%g`: as many digits, with an exponent where the number is very small or great.
fn general(number: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.max(1);
    let written = exponential(number, precision - 1);
    let exponent: i32 = written.rsplit('e').next().and_then(|exponent| exponent.parse().ok()).unwrap_or_default();
    let strip = |digits: &str| match digits.contains('.') && !keep_zeros {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if exponent < -4 || exponent >= precision as i32 {
        let (digits, exponent) = written.split_once('e').unwrap_or((&written, "+00"));
        return format!("{}e{exponent}", strip(digits));
    }
    let decimals = (precision as i32 - 1 - exponent).max(0) as usize;
    strip(&format!("{number:.decimals$}"))
}
