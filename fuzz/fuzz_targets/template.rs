//! A chat template, and after a zero byte the messages in JSON that it renders.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::{config, golden, run, with_model};

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let Ok(template) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let messages: Option<Vec<_>> = parts.next().and_then(|json| serde_json::from_slice(json).ok());
    with_model(&golden("mha_tied"), config().chat_template(template), |model| run(model, messages.as_deref()));
});
