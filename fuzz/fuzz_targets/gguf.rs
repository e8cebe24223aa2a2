//! A GGUF file of any bytes.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::{load_and_run, scratch};

fuzz_target!(|bytes: &[u8]| {
    fs::create_dir_all(scratch()).expect("a scratch directory");
    let path = scratch().join("model.gguf");
    fs::write(&path, bytes).expect("room for a file");
    load_and_run(&path);
});
