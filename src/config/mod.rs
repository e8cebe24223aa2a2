//! Configuration of loading and of requests.

mod deadline;
mod generate;
mod load;
#[cfg(test)]
mod tests;

pub use deadline::Deadline;
pub use generate::GenerateConfig;
pub use load::{ActivationType, KvCacheType, LoadConfig, LoadProgress, ProgressFn, Quantize};

use serde_json::Value;

use crate::{Error, Result};

/// Writes a builder method for each field.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $arg:ty => $value:expr;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $arg) -> Self {
            self.$name = $value;
            self
        })*
    };
}

pub(crate) use setters;

/// Refuses a name beside `base_model`, and an empty name.
pub(crate) fn check_adapter(adapter: Option<&str>, base_model: bool) -> Result<()> {
    match adapter {
        Some(name) if base_model => Err(Error::config("base_model", format!("true, beside the adapter {name:?}"))),
        Some(name) => check_adapter_name(name),
        None => Ok(()),
    }
}

/// Refuses an empty name.
pub(crate) fn check_adapter_name(name: &str) -> Result<()> {
    if name.is_empty() { Err(Error::config("adapter", "\"\" is no name")) } else { Ok(()) }
}

/// The deepest nesting of lists and objects in the variables of a chat template.
pub(crate) const MAX_NESTING: usize = 64;

/// Whether lists and objects in `value` are nested more than `limit` deep.
pub(crate) fn nests_deeper(value: &Value, limit: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if limit == 0 => true,
        Value::Array(items) => items.iter().any(|item| nests_deeper(item, limit - 1)),
        Value::Object(fields) => fields.values().any(|field| nests_deeper(field, limit - 1)),
        _ => false,
    }
}
