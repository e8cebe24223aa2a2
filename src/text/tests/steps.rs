//! Against the tokenizers crate, which does all steps of a file one after the other.

use super::*;
use crate::text::token_decoder::TokenDecoder;

const TEXTS: [&str; 10] = [
    "",
    " ",
    "Hello,  world! don't 12345 x1y2",
    "  two spaces\n\n before and after  ",
    "a b  c   d    e",
    "--a--b-- --",
    "e\u{301}\u{301} Ａ ﬁ À日本語 नमस्ते ٣٤٥",
    "<|im_end|> a <|im_end|><|im_end|>b  ",
    "x▁y ▁▁z",
    "ABC def\u{a0}\u{3000}g",
];

fn check(parts: &[(&str, Value)]) {
    let mut tokenizer = json("mha_tied/tokenizer.json");
    for (name, value) in parts {
        tokenizer[*name] = value.clone();
    }
    let theirs = tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
    let ours = Tokenizer::new(Path::new("tokenizer.json"), theirs.clone()).unwrap();
    let mut plain = theirs.clone();
    plain.set_encode_special_tokens(true);
    for text in TEXTS.iter().map(|text| (*text).to_owned()).chain([TEXTS.concat(), TEXTS.concat().repeat(40)]) {
        for around in [true, false] {
            let expected = theirs.encode_fast(text.as_str(), around).unwrap();
            assert_eq!(ours.encode(&text, around).unwrap(), expected.get_ids(), "{parts:?}: {text:?}");
        }
        let expected = plain.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(ours.encode_plain(&text).unwrap(), expected.get_ids(), "{parts:?}: plain {text:?}");
    }
}

#[test]
fn pre_tokenizers_match_the_tokenizers_crate() {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let then_bytes = |step: Value| json!({"type": "Sequence", "pretokenizers": [step, bytes]});
    for prefix in [true, false] {
        for regex in [true, false] {
            let step =
                json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
            check(&[("pre_tokenizer", step)]);
        }
    }
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
        for invert in [true, false] {
            for pattern in
                [json!({"String": " "}), json!({"String": "-"}), json!({"Regex": r"\s+|\d"}), json!({"Regex": ""})]
            {
                let split = json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
                check(&[("pre_tokenizer", then_bytes(split))]);
            }
        }
        check(&[("pre_tokenizer", then_bytes(json!({"type": "Punctuation", "behavior": behavior})))]);
    }
    for scheme in ["first", "always", "never"] {
        for split in [true, false] {
            let step = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
            check(&[("pre_tokenizer", then_bytes(step))]);
        }
    }
    for each in [true, false] {
        check(&[("pre_tokenizer", then_bytes(json!({"type": "Digits", "individual_digits": each})))]);
    }
    for step in ["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"] {
        check(&[("pre_tokenizer", then_bytes(json!({"type": step})))]);
    }
    check(&[("pre_tokenizer", Value::Null)]);
}

#[test]
fn normalizers_match_the_tokenizers_crate() {
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    for normalizer in [
        Value::Null,
        json!({"type": "NFC"}),
        json!({"type": "NFKC"}),
        json!({"type": "NFD"}),
        json!({"type": "Lowercase"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "StripAccents"}),
        json!({"type": "Prepend", "prepend": "▁"}),
        replace(json!({"String": " "}), "▁"),
        replace(json!({"String": "y2"}), ""),
        replace(json!({"Regex": r"\s+"}), " "),
        json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, replace(json!({"String": " "}), "▁")
        ]}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]}),
    ] {
        check(&[("normalizer", normalizer.clone())]);
        let token = |id: u32, content: &str, normalized: bool, special: bool| {
            json!({"id": id, "content": content, "single_word": id.is_multiple_of(2), "lstrip": id.is_multiple_of(3),
                   "rstrip": id.is_multiple_of(5), "normalized": normalized, "special": special})
        };
        let mut tokens = Vec::new();
        for (id, content) in (5000..).zip(["<|im_end|>", "a", "U", "  ", "é", "--", "don't", "2345", "x▁y", "ABC"]) {
            // A control token of one letter would leave no way to write that letter.
            let special = id % 3 == 0 && content.len() > 1;
            tokens.push(token(id, content, id % 4 < 2, special));
        }
        check(&[("normalizer", normalizer), ("added_tokens", tokens.into())]);
    }
}

/// The text of tokens by our decoder and by the crate's.
fn decoded(decoder: &Value, tokens: &[&str]) -> (String, String) {
    let owned = || tokens.iter().map(|token| (*token).to_owned()).collect::<Vec<_>>();
    let theirs: tokenizers::DecoderWrapper = serde_json::from_value(decoder.clone()).unwrap();
    let theirs = tokenizers::Decoder::decode(&theirs, owned()).unwrap();
    (TokenDecoder::read(decoder).unwrap().decode(owned()).unwrap(), theirs)
}

#[test]
fn decoders_match_the_tokenizers_crate() {
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    fn strip(content: &str, start: usize, stop: usize) -> Value {
        json!({"type": "Strip", "content": content, "start": start, "stop": stop})
    }
    let sequence = |steps: Value| json!({"type": "Sequence", "decoders": steps});
    let spaces = replace(json!({"String": "▁"}), " ");
    let texts = ["▁Hello", "▁", " x ", "ab", "  ", "▁▁y", "ü", "##ing", "a</w>"];
    let bytes = ["<0x41>", "<0xE6>", "<0x97>", "<0xA5>"];
    let tokens = [&texts[..3], &bytes, &texts[3..]].concat();
    for decoder in [
        spaces.clone(),
        replace(json!({"String": ""}), "-"),
        replace(json!({"Regex": "(a|b)+"}), "<>"),
        replace(json!({"Regex": r"^▁(\p{L})"}), "*"),
        replace(json!({"Regex": ""}), "-"),
        strip("▁", 1, 0),
        strip(" ", 1, 1),
        strip(" ", 0, 1),
        json!({"content": "▁", "start": 1, "stop": 0, "type": "Strip"}),
        sequence(json!([])),
        sequence(json!([spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, strip(" ", 1, 0)])),
        sequence(json!([sequence(json!([{"type": "ByteFallback"}])), {"type": "Fuse"}])),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "CTC", "pad_token": "ab", "word_delimiter_token": "▁", "cleanup": true}),
    ] {
        // The crate panics for tokens that are shorter than `stop`.
        let tokens: Vec<_> = tokens.iter().copied().filter(|token| decoder["stop"] == 0 || token.len() > 2).collect();
        let (ours, theirs) = decoded(&decoder, &tokens);
        assert_eq!(ours, theirs, "{decoder}");
        assert_eq!(TokenDecoder::read(&decoder).unwrap().decode(Vec::new()).unwrap(), "", "{decoder}");
    }
    assert_eq!(TokenDecoder::read(&Value::Null).unwrap().decode(vec!["a".into(), "b".into()]).unwrap(), "a b");
}

#[test]
fn decoder_strip_beyond_the_token() {
    for (start, stop, token, expected) in [
        (0, 1, "", ""),
        (0, 3, " ", ""),
        (1, usize::MAX, "  ", ""),
        (usize::MAX, usize::MAX, "   ", ""),
        (2, 2, "   ", ""),
        (1, 2, "  a    ", " a  "),
        (0, usize::MAX, "ü  ", "ü"),
    ] {
        let decoder = json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
        assert_eq!(TokenDecoder::read(&decoder).unwrap().decode(vec![token.into()]).unwrap(), expected, "{token:?}");
    }
}

#[test]
fn decoder_patterns_with_lookaround_are_refused() {
    for pattern in [r"a(?=b)", r"(?<!x)a", r"(a)\1", "(?>a|ab)c"] {
        let decoder = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""});
        let error = TokenDecoder::read(&decoder).err().unwrap().to_string();
        assert!(error.contains(&format!("{pattern:?}")) && error.contains("looks around or back"), "{error}");
    }
}
