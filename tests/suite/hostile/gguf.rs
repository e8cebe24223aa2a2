//! GGUF files with hostile tokenizers.

use std::fs;

use super::{assert_none, fault_of};
use crate::{TempDir, golden_path};

const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;

/// A golden file with another value for a metadata key.
fn with_metadata(file: &str, key: &str, value: &[u8]) -> Vec<u8> {
    let bytes = fs::read(golden_path("gguf").join(file)).unwrap();
    let mut reader = Reader { bytes: &bytes, at: 8 };
    let (tensors, entries) = (reader.size(), reader.size());
    let mut made = bytes[..24].to_vec();
    let mut found = false;
    for _ in 0..entries {
        let start = reader.at;
        let name = reader.string();
        let after_name = reader.at;
        let kind = reader.u32();
        reader.skip(kind);
        if name == key.as_bytes() {
            found = true;
            made.extend(&bytes[start..after_name]);
            made.extend(value);
        } else {
            made.extend(&bytes[start..reader.at]);
        }
    }
    assert!(found, "{file} has no {key}");
    let infos = reader.at;
    for _ in 0..tensors {
        reader.string();
        let dims = reader.u32() as usize;
        reader.at += 8 * dims + 12;
    }
    made.extend(&bytes[infos..reader.at]);
    made.resize(made.len().next_multiple_of(32), 0);
    made.extend(&bytes[reader.at.next_multiple_of(32)..]);
    made
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn u32(&mut self) -> u32 {
        self.at += 4;
        u32::from_le_bytes(self.bytes[self.at - 4..self.at].try_into().unwrap())
    }

    fn size(&mut self) -> usize {
        self.at += 8;
        u64::from_le_bytes(self.bytes[self.at - 8..self.at].try_into().unwrap()) as usize
    }

    fn string(&mut self) -> &'a [u8] {
        let len = self.size();
        self.at += len;
        let bytes = self.bytes;
        &bytes[self.at - len..self.at]
    }

    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => self.at += 1,
            2 | 3 => self.at += 2,
            4..=6 => self.at += 4,
            STRING => {
                self.string();
            }
            ARRAY => {
                let (kind, len) = (self.u32(), self.size());
                (0..len).for_each(|_| self.skip(kind));
            }
            _ => self.at += 8,
        }
    }
}

fn array(kind: u32, elements: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut value = [ARRAY.to_le_bytes(), kind.to_le_bytes()].concat();
    value.extend((elements.len() as u64).to_le_bytes());
    elements.for_each(|element| value.extend(element));
    value
}

fn texts<T: AsRef<[u8]>>(texts: impl ExactSizeIterator<Item = T>) -> Vec<u8> {
    array(STRING, texts.map(|text| [&(text.as_ref().len() as u64).to_le_bytes()[..], text.as_ref()].concat()))
}

fn numbers(kind: u32, numbers: impl ExactSizeIterator<Item = u32>) -> Vec<u8> {
    array(kind, numbers.map(|number| number.to_le_bytes().to_vec()))
}

fn number(kind: u32, number: u32) -> Vec<u8> {
    [kind.to_le_bytes(), number.to_le_bytes()].concat()
}

#[test]
fn gguf_tokenizers_are_bounded() {
    let (bpe, spm) = ("tiny-f32.gguf", "tiny-spm.gguf");
    let invalid = [&b"\xff\xfe"[..], b"\xc3", b"ok", b"\xf0\x9f"];
    let many = || (0..200_000).map(|i| format!("token{i}"));
    let cases: Vec<(&str, &str, &str, Vec<u8>)> = vec![
        ("texts that are not UTF-8", bpe, "tokens", texts(invalid.iter())),
        ("texts that are not UTF-8", spm, "tokens", texts(invalid.iter())),
        ("no tokens", bpe, "tokens", texts([""; 0].iter())),
        ("empty tokens", bpe, "tokens", texts([""; 5000].iter())),
        ("numbers for tokens", bpe, "tokens", numbers(UINT32, 0..5000)),
        ("many tokens", bpe, "tokens", texts(many())),
        ("many tokens", spm, "tokens", texts(many())),
        ("equal tokens", spm, "tokens", texts(["a"; 5000].iter())),
        ("tokens of tokens", spm, "tokens", texts((1..3001usize).map(|len| "a".repeat(len)))),
        ("few types", bpe, "token_type", numbers(INT32, 0..3)),
        ("types that are texts", bpe, "token_type", texts(["1"; 5000].iter())),
        ("types that there are not", bpe, "token_type", numbers(INT32, (0..5000).map(|i| u32::MAX - i))),
        ("all control tokens", bpe, "token_type", numbers(INT32, [3; 5000].into_iter())),
        ("scores that are no numbers", spm, "scores", numbers(FLOAT32, [0x7fc0_0000; 5000].into_iter())),
        ("few scores", spm, "scores", numbers(FLOAT32, 0..3)),
        ("merges of no tokens", bpe, "merges", texts(["no such", "a", "", " ", "a b c"].iter())),
        ("many merges", bpe, "merges", texts(["a b"; 200_000].iter())),
        ("merges that are numbers", bpe, "merges", numbers(UINT32, 0..100)),
        ("an id out of range", bpe, "eos_token_id", number(UINT32, u32::MAX)),
        ("an id out of range", spm, "bos_token_id", number(INT32, u32::MAX)),
        ("an id that is a text", spm, "bos_token_id", [&STRING.to_le_bytes()[..], &[0; 8]].concat()),
    ];
    let mut faults = Vec::new();
    for (name, file, key, value) in cases {
        let dir = TempDir::new("hostile-gguf");
        let path = dir.0.join("model.gguf");
        fs::write(&path, with_metadata(file, &format!("tokenizer.ggml.{key}"), &value)).unwrap();
        faults.extend(fault_of(
            &format!("{file}, {key}: {name}"),
            &path,
            &["tokenizer.ggml.", "vocabulary", "chat template", "control token"],
        ));
    }
    assert_none(faults);
}
