//! What templates may take: they come with models, and fuel counts their steps only.

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

/// Bytes a template may write.
pub const MAX_BYTES: usize = 16 << 20;
/// How deep values may be nested to be written.
pub const MAX_DEPTH: usize = 100;
/// The most items that a list may have to be gone through.
const MAX_ITEMS: usize = 1 << 20;

/// An error that ends a template.
pub fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Refuses texts that are too long before there are any.
pub fn check_bytes(len: usize) -> Result<(), Error> {
    if len > MAX_BYTES { Err(failed(format!("a text is longer than {MAX_BYTES} bytes"))) } else { Ok(()) }
}

/// Refuses lists that are too long. What length `[0] * n` says it has may not be so.
pub fn check_items(list: &Value) -> Result<(), Error> {
    let is_list = matches!(list.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_list && list.try_iter()?.take(MAX_ITEMS + 1).count() > MAX_ITEMS {
        return Err(failed(format!("a list is longer than {MAX_ITEMS} items")));
    }
    Ok(())
}

/// Refuses numbers of items above the most that a list may have.
pub fn check_count(count: &Value) -> Result<(), Error> {
    match count.as_usize() {
        Some(count) if count > MAX_ITEMS => Err(failed(format!("{count} is more than {MAX_ITEMS} items"))),
        _ => Ok(()),
    }
}
