//! Limits on how much the steps of a `tokenizer.json` expand a text: each multiplies the output of the one before, and
//! a file of a few kilobytes could take all memory.

use std::path::Path;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::Value;

use super::tokenizer_json::TokenizerJson;
use crate::{Error, Result};

/// The most bytes that a byte may become. Real models reach a few hundred, with SentencePiece's charsmap.
const MAX_EXPANSION: f64 = 4096.0;

/// The most tokens that a post-processor may make of one. Real ones put a few around a text.
const MAX_REPEATS: f64 = 64.0;

/// As lenient as the tokenizers crate is.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Refuses a `tokenizer.json` that could make very much of little.
pub fn check(path: &Path, steps: &TokenizerJson) -> Result<()> {
    let encoding = expansion(&steps.normalizer) * expansion(&steps.pre_tokenizer);
    for (fields, expansion, most) in [
        ("normalizer and pre_tokenizer", encoding, MAX_EXPANSION),
        ("post_processor", expansion(&steps.post_processor), MAX_REPEATS),
        ("decoder", expansion(&steps.decoder), MAX_EXPANSION),
    ] {
        if expansion > most {
            let reason = format!("{fields} could make a text {expansion:.0} times as long, more than {most} times");
            return Err(Error::model(path, reason));
        }
    }
    Ok(())
}

/// The most bytes, or tokens, that a step and its inner steps make of one. The crate knows some steps by their fields,
/// without a `type`.
pub fn expansion(step: &Value) -> f64 {
    let Some(fields) = step.as_object() else { return 1.0 };
    let len = |key: &str| fields.get(key).and_then(Value::as_str).map_or(0, str::len) as f64;
    let own = match step["type"].as_str().unwrap_or_default() {
        // Two bytes for each that is not ASCII.
        "ByteLevel" => 2.0,
        // Spaces around Chinese characters, and in place of a suffix that may be empty.
        "Bert" | "BertNormalizer" | "BPEDecoder" => 2.0,
        // A character for a space, and one before each word.
        "Metaspace" => 4.0,
        _ => 1.0,
    };
    let replaced = match step["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => (len("content") / pattern.len() as f64).max(1.0),
        // A regular expression may find something before every byte.
        _ => 1.0 + len("content"),
    };
    let mapped = fields.get("precompiled_charsmap").and_then(Value::as_str).map_or(1, longest_text).max(1) as f64;
    let repeated = fields.get("single").and_then(Value::as_array).map_or(1, Vec::len).max(1) as f64;
    let inner = fields.values().filter_map(Value::as_array).flatten().map(expansion).product::<f64>();
    own * replaced * (1.0 + len("prepend")) * mapped * repeated * inner
}

/// The longest text, each ends with a zero, in a charsmap of SentencePiece: base64 of the size of a trie, the trie,
/// and what characters become.
fn longest_text(charsmap: &str) -> usize {
    let bytes = BASE64.decode(charsmap).unwrap_or_default();
    let Some((size, rest)) = bytes.split_first_chunk() else { return 1 };
    let texts = rest.get(u32::from_le_bytes(*size) as usize..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(tokenizer: Value) -> Option<String> {
        let parts = serde_json::from_value(tokenizer).unwrap();
        check(Path::new("tokenizer.json"), &parts).err().map(|error| error.to_string())
    }

    #[test]
    fn multiplying_steps_are_refused() {
        let replace =
            |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let string = |pattern: &str| json!({"String": pattern});
        let chain = |count: usize, step: Value| json!({"type": "Sequence", "normalizers": vec![step; count]});
        let reason_of = |normalizer: Value| reason(json!({"normalizer": normalizer}));

        assert_eq!(reason_of(json!(null)), None);
        assert_eq!(reason_of(chain(100, replace(string("ab"), "cd"))), None);
        assert_eq!(reason_of(chain(6, replace(string(" "), "▁"))), None);
        let reason_of_chain = reason_of(chain(12, replace(string("a"), &"a".repeat(32)))).unwrap();
        assert!(reason_of_chain.contains("tokenizer.json: normalizer"), "{reason_of_chain}");
        assert!(reason_of(chain(13, replace(json!({"Regex": ""}), "a"))).is_some());
        assert!(reason_of(chain(13, json!({"type": "ByteLevel"}))).is_some());
        assert!(reason_of(chain(6, json!({"type": "Prepend", "prepend": "▁▁▁"}))).is_some());
        assert!(reason_of(chain(6, chain(6, replace(string(" "), "▁")))).is_some());
        let pre_tokenizers = vec![json!({"type": "Metaspace"}); 5];
        let both = json!({
            "normalizer": chain(2, replace(string("a"), "aa")), "pre_tokenizer": {"pretokenizers": pre_tokenizers}
        });
        assert_eq!(reason(both.clone()), None);
        let pre_tokenizer = &both["pre_tokenizer"];
        let more = json!({"normalizer": chain(3, replace(string("a"), "aa")), "pre_tokenizer": pre_tokenizer});
        assert!(reason(more).is_some());
    }

    #[test]
    fn decoder_and_post_processor_expansion_is_limited() {
        let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
        let reason_of_decoder =
            reason(json!({"decoder": {"type": "Sequence", "decoders": [replace, replace]}})).unwrap();
        assert!(reason_of_decoder.contains("decoder could make a text 10000 times"), "{reason_of_decoder}");
        let template = |count| {
            let pieces = vec![json!({"Sequence": {"id": "A", "type_id": 0}}); count];
            json!({"post_processor": {"type": "TemplateProcessing", "single": pieces}})
        };
        assert_eq!(reason(template(1)), None);
        assert!(reason(template(5000)).unwrap().contains("post_processor"));
    }

    #[test]
    fn charsmap_expansion_is_measured() {
        // A trie of four bytes, and the texts "a" and "b" * 5.
        assert_eq!(longest_text("BAAAAAAAAABhAGJiYmJiAA=="), 5);
        assert_eq!(longest_text("BAAAAAAAAABhAGJiYmJiAA"), 5);
        assert_eq!(longest_text(""), 1);
    }
}
