//! A tokenizer.json of any bytes, and prompts through it if it loads.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::{copy_of, load_and_run};

fuzz_target!(|bytes: &[u8]| {
    let dir = copy_of("mha_tied");
    fs::write(dir.join("tokenizer.json"), bytes).expect("room for a file");
    load_and_run(&dir);
});
