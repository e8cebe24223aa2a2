//! A config.json of any bytes.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::{copy_of, load_and_run};

fuzz_target!(|bytes: &[u8]| {
    let dir = copy_of("mha_tied");
    fs::write(dir.join("config.json"), bytes).expect("room for a file");
    load_and_run(&dir);
});
