//! An adapter: its adapter_config.json, and after a zero byte its weights.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::{config, golden, run, scratch, with_model};

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let dir = scratch();
    fs::create_dir_all(&dir).expect("a scratch directory");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::write(dir.join(name), parts.next().unwrap_or_default()).expect("room for a file");
    }
    with_model(&golden("mha_tied"), config().adapter_path(dir), |model| run(model, None));
});
