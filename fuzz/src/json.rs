//! Edits of a JSON file that leave it JSON.

use arbitrary::Arbitrary;
use serde_json::{Value, json};

/// What becomes of one value of a file.
#[derive(Debug, Arbitrary)]
pub struct JsonEdit {
    /// Which value, counted in the order of the file.
    at: u16,
    change: Change,
}

#[derive(Debug, Arbitrary)]
enum Change {
    Remove,
    Integer(i64),
    Float(f64),
    Text(String),
    Hard(u8),
    /// A copy of another value of the file.
    CopyOf(u16),
    /// The value in as many lists.
    Nested(u8),
    /// A list of as many copies, or a text that is repeated.
    Repeated(u16),
}

impl JsonEdit {
    /// Changes `root`.
    pub fn apply(&self, root: &mut Value) {
        let count = count(root);
        let copy = match self.change {
            Change::CopyOf(at) => nth(root, at as usize % count).map(|value| value.clone()),
            _ => None,
        };
        let Some(value) = nth(root, self.at as usize % count) else { return };
        *value = match &self.change {
            Change::Remove => Value::Null,
            Change::Integer(number) => json!(number),
            Change::Float(number) => json!(number),
            Change::Text(text) => json!(text),
            Change::Hard(at) => hard(*at),
            Change::CopyOf(_) => copy.unwrap_or_default(),
            Change::Nested(depth) => (0..*depth).fold(value.take(), |value, _| json!([value])),
            Change::Repeated(times) => match value.take() {
                Value::String(text) => json!(text.repeat(*times as usize)),
                value => Value::Array(vec![value; *times as usize % 256]),
            },
        };
    }
}

/// Values that readers stumble over.
fn hard(at: u8) -> Value {
    let values = [
        json!(0),
        json!(-1),
        json!(1),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!([]),
        json!({}),
        json!(true),
        json!("\\p{L}+(?!\\S)|(?:a|aa)*b"),
        json!("{{ x ~ x }}{% for a in [0] * 99999999 %}{% endfor %}"),
        json!("../../etc/passwd"),
        json!("<|im_end|>"),
        json!({"__float__": "Infinity"}),
    ];
    values[at as usize % values.len()].clone()
}

/// The values of a tree, itself among them.
fn count(value: &Value) -> usize {
    1 + children(value).map(count).sum::<usize>()
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// The value at place `at` of a walk.
fn nth(value: &mut Value, mut at: usize) -> Option<&mut Value> {
    if at == 0 {
        return Some(value);
    }
    at -= 1;
    let items: Box<dyn Iterator<Item = &mut Value>> = match value {
        Value::Array(items) => Box::new(items.iter_mut()),
        Value::Object(fields) => Box::new(fields.values_mut()),
        _ => return None,
    };
    for item in items {
        let inside = count(item);
        if at < inside {
            return nth(item, at);
        }
        at -= inside;
    }
    None
}
