//! Whole models whose fields are changed one by one, then run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenflow_fuzz::ModelEdits;

fuzz_target!(|edits: ModelEdits| edits.run());
