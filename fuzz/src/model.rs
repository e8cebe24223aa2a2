//! Whole models with a few changed fields: such files get further than random bytes do.

use std::{fs, path::PathBuf};

use arbitrary::Arbitrary;
use serde_json::Value;

use crate::{copy_of, gguf, golden, json::JsonEdit, load_and_run, scratch};

/// A golden model and what is changed in it.
#[derive(Debug, Arbitrary)]
pub enum ModelEdits {
    /// Fields of a GGUF file's header.
    Gguf { file: u8, fields: Vec<FieldEdit>, truncated_by: u16 },
    /// Values of the JSON files of a directory, by turns.
    Directory { edits: Vec<(u8, JsonEdit)> },
    /// Values of the header of a safetensors file.
    Safetensors { edits: Vec<JsonEdit>, truncated_by: u16 },
}

/// A field of a binary header that becomes another.
#[derive(Debug, Arbitrary)]
pub struct FieldEdit {
    at: u16,
    value: FieldValue,
}

#[derive(Debug, Arbitrary)]
enum FieldValue {
    Bytes([u8; 8]),
    Add(i8),
    Zero,
    Ones,
}

const GGUF_FILES: [&str; 6] = ["tiny-f16", "tiny-q4_0", "tiny-q8_0", "tiny-qwen3", "tiny-rope-freqs", "tiny-spm"];
const JSON_FILES: [&str; 4] = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
const DIRECTORY: &str = "mha_tied";
const WEIGHTS: &str = "model.safetensors";

impl ModelEdits {
    /// Writes the model, loads it, and lets it answer.
    pub fn run(&self) {
        match self {
            Self::Gguf { file, fields, truncated_by } => {
                let name = GGUF_FILES[*file as usize % GGUF_FILES.len()];
                let mut bytes = fs::read(golden("gguf").join(format!("{name}.gguf"))).expect("a golden file");
                let places = gguf::fields(&bytes);
                for edit in fields {
                    edit.apply(&mut bytes[places[edit.at as usize % places.len()].clone()]);
                }
                bytes.truncate(bytes.len() - *truncated_by as usize % bytes.len());
                fs::create_dir_all(scratch()).expect("a scratch directory");
                let path = scratch().join("model.gguf");
                fs::write(&path, bytes).expect("room for a file");
                load_and_run(&path);
            }
            Self::Directory { edits } => {
                let dir = fresh();
                for (file, edit) in edits {
                    let path = dir.join(JSON_FILES[*file as usize % JSON_FILES.len()]);
                    let mut value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
                    edit.apply(&mut value);
                    fs::write(&path, value.to_string()).expect("room for a file");
                }
                load_and_run(&dir);
            }
            Self::Safetensors { edits, truncated_by } => {
                let dir = fresh();
                let path = dir.join(WEIGHTS);
                let bytes = fs::read(&path).expect("a golden file");
                let (len, rest) = bytes.split_first_chunk().expect("a length");
                let (header, tensors) = rest.split_at(u64::from_le_bytes(*len) as usize);
                let mut header: Value = serde_json::from_slice(header).expect("JSON");
                edits.iter().for_each(|edit| edit.apply(&mut header));
                let header = header.to_string();
                let len = (header.len() as u64).to_le_bytes();
                let mut bytes = [&len[..], header.as_bytes(), tensors].concat();
                bytes.truncate(bytes.len() - *truncated_by as usize % bytes.len());
                fs::write(&path, bytes).expect("room for a file");
                load_and_run(&dir);
            }
        }
    }
}

impl FieldEdit {
    fn apply(&self, field: &mut [u8]) {
        match self.value {
            FieldValue::Bytes(bytes) => field.iter_mut().zip(bytes).for_each(|(to, from)| *to = from),
            FieldValue::Add(step) => {
                if let Some(first) = field.first_mut() {
                    *first = first.wrapping_add_signed(step);
                }
            }
            FieldValue::Zero => field.fill(0),
            FieldValue::Ones => field.fill(0xFF),
        }
    }
}

/// The directory as it was before the last edits.
fn fresh() -> PathBuf {
    let dir = copy_of(DIRECTORY);
    for name in JSON_FILES.iter().chain([&WEIGHTS]) {
        fs::copy(golden(DIRECTORY).join(name), dir.join(name)).expect("a copy");
    }
    dir
}
