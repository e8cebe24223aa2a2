//! How GPT-2 writes bytes as characters, so that all are visible.

use std::sync::LazyLock;

static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (256..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match visible(byte as u8) {
        true => char::from(byte as u8),
        false => others.next().unwrap_or_default(),
    })
});

/// The characters of all bytes, in order.
pub fn chars() -> &'static [char; 256] {
    &CHARS
}

/// The bytes of a text as characters.
pub fn written(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    write(text, &mut written);
    written
}

/// Appends the bytes of a text as characters.
pub fn write(text: &str, to: &mut String) {
    let chars = chars();
    to.extend(text.bytes().map(|byte| chars[usize::from(byte)]));
}
