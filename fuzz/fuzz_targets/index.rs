//! An index of shards of any bytes, beside the whole weights.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::{copy_of, load_and_run};

fuzz_target!(|bytes: &[u8]| {
    let dir = copy_of("mha_tied");
    fs::write(dir.join("model.safetensors.index.json"), bytes).expect("room for a file");
    load_and_run(&dir);
});
