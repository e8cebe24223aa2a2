//! JSON as Python writes it.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, files};

/// The most values of a file. Each takes some dozen bytes of memory, however few it takes there.
const MAX_VALUES: usize = 1 << 20;

/// The key under which transformers 5 writes floats that JSON lacks.
const FLOAT: &str = "__float__";

/// Reads an object from a file. Python's `NaN`, `Infinity` and `-Infinity` are in it as transformers 5 writes them:
/// `{"__float__": "NaN"}`.
pub fn read(path: &Path) -> Result<Map<String, Value>> {
    parse(path, &files::read_limited(path, files::MAX_JSON)?)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    let found = JsonScan::of(bytes);
    if found.values > MAX_VALUES {
        return Err(Error::model(path, format!("has {} values; {MAX_VALUES} are the most", found.values)));
    }
    let bytes = match found.constants.is_empty() {
        true => bytes,
        false => &tagged(bytes, &found.constants),
    };
    serde_json::from_slice(bytes).map_err(|error| Error::model_because(path, "is not a JSON object", error))
}

/// The float that a tagged value stands for.
pub fn special_float(value: &Value) -> Option<f64> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    match object.get(FLOAT)?.as_str()? {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// Contents of a file outside of strings.
#[derive(Default)]
struct JsonScan {
    /// Values, or a few more.
    values: usize,
    /// Where Python's constants are, and which.
    constants: Vec<(usize, &'static str)>,
}

impl JsonScan {
    fn of(bytes: &[u8]) -> Self {
        let mut this = Self { values: 1, ..Self::default() };
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => at += string_len(&bytes[at..]),
                b',' | b'[' | b'{' => {
                    this.values += 1;
                    at += 1;
                }
                b'N' | b'I' | b'-' => {
                    let constant = ["NaN", "Infinity", "-Infinity"];
                    match constant.into_iter().find(|constant| bytes[at..].starts_with(constant.as_bytes())) {
                        Some(constant) => {
                            this.constants.push((at, constant));
                            at += constant.len();
                        }
                        None => at += 1,
                    }
                }
                _ => at += 1,
            }
        }
        this
    }
}

/// The bytes of a string with its quotation marks, as far as it goes.
fn string_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The text with objects for constants.
fn tagged(bytes: &[u8], constants: &[(usize, &str)]) -> Vec<u8> {
    let mut tagged = Vec::with_capacity(bytes.len() + 32 * constants.len());
    let mut done = 0;
    for (at, constant) in constants {
        tagged.extend_from_slice(&bytes[done..*at]);
        tagged.extend_from_slice(format!("{{\"{FLOAT}\":\"{constant}\"}}").as_bytes());
        done = at + constant.len();
    }
    tagged.extend_from_slice(&bytes[done..]);
    tagged
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(text: &str) -> Result<Map<String, Value>> {
        parse(Path::new("x.json"), text.as_bytes())
    }

    #[test]
    fn python_float_constants_are_tagged_outside_of_strings() {
        let text = r#"{"limit": [0.0, Infinity], "low":-Infinity, "no": NaN, "text \" NaN": "Infinity, \\", "n": -1}"#;
        let tag = |name: &str| json!({"__float__": name});
        let expected = json!({
            "limit": [0.0, tag("Infinity")], "low": tag("-Infinity"), "no": tag("NaN"),
            "text \" NaN": "Infinity, \\", "n": -1,
        });
        let object = parsed(text).unwrap();
        assert_eq!(Value::Object(object.clone()), expected);
        assert_eq!(special_float(&object["low"]), Some(f64::NEG_INFINITY));
        for other in
            [r#"{"a": Nan}"#, r#"{"a": -Inf}"#, r#"{"a": infinity}"#, r#"{"a": InfinityInfinity}"#, r#"{"a": ""#]
        {
            assert!(parsed(other).is_err(), "{other}");
        }
    }

    #[test]
    fn too_many_values_are_refused() {
        let error = parsed(&format!(r#"{{"a": [{}0]}}"#, "0,".repeat(MAX_VALUES))).unwrap_err();
        assert!(error.to_string().contains("values"), "{error}");
    }
}
