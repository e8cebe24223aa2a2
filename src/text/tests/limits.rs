//! Time and memory of tokenizing, for hostile files and texts.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{gguf_files::tokenizer_of, *};
use crate::text::{EncodeMode, budget::TokenizeBudget};

/// Repeated, these are hard for patterns, models or normalizers.
const HARD: [&str; 22] = [
    " ", "\n", "\t", "a", "A", "1", "!", "'", "\u{301}", "日", "a1", " a", "1 ", "\r\n", " \n", "'s", "aA", "<|", "▁",
    "\u{a0}", "नम", "\u{fdfa}",
];

/// Every tokenizer of the goldens, and one of each kind of pre-tokenizer of GGUF files.
fn all_tokenizers() -> Vec<(String, Tokenizer)> {
    let metadata = &json("gguf/tokenizers.json")["byte_level"];
    let groups = metadata["groups"].as_array().unwrap();
    // The kinds of a group are equal.
    let kinds = groups.iter().map(|group| &group["kinds"][0]);
    let of_kind = |kind: &Value| {
        let tokenizer = tokenizer_of(&metadata["metadata"], &[("tokenizer.ggml.pre", kind.clone())]).unwrap();
        (kind.to_string(), tokenizer)
    };
    let files = std::fs::read_dir(golden("")).unwrap().map(|dir| dir.unwrap().path().join("tokenizer.json"));
    let mut seen = HashSet::new();
    let files = files.filter(|path| std::fs::read(path).is_ok_and(|json| seen.insert(json)));
    let read = |path: PathBuf| (path.display().to_string(), Tokenizer::read(&path, AddedTokens::default()).unwrap());
    kinds.map(of_kind).chain(files.map(read)).collect()
}

#[test]
fn encoding_takes_linear_time() {
    let tokenizers = all_tokenizers();
    assert!(tokenizers.len() > 32, "{}", tokenizers.len());
    for (name, tokenizer) in tokenizers {
        for unit in HARD {
            let took = |bytes: usize| {
                let text = unit.repeat(bytes / unit.len());
                let begun = Instant::now();
                tokenizer.encode(&text, true).unwrap();
                begun.elapsed()
            };
            let (short, long) = (took(4 << 10), took(16 << 10));
            // Generous for a busy machine, and less than quadratic.
            assert!(long < 10 * short.max(Duration::from_millis(40)), "{name}, {unit:?}: {short:?}, then {long:?}");
        }
    }
}

/// The first golden's `tokenizer.json` with other parts, read.
fn with(parts: &[(&str, Value)]) -> crate::Result<Tokenizer> {
    let mut tokenizer = json("mha_tied/tokenizer.json");
    for (name, value) in parts {
        tokenizer[*name] = value.clone();
    }
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let dir = std::env::temp_dir().join(format!("tokenflow-limits-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let read = Tokenizer::read(&path, AddedTokens::default());
    std::fs::remove_dir_all(dir).unwrap();
    read
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

#[test]
fn bad_patterns_name_file_and_field() {
    let begun = Instant::now();
    let nested = |open: &str, close: &str| format!("{}a{}", open.repeat(2000), close.repeat(2000));
    for pattern in [nested("(", ")"), nested("(?~", ")"), nested("[", "]"), r"\p{L}".repeat(50_000), "(".into()] {
        let replace = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": ""});
        for (field, value) in [
            ("pre_tokenizer", split(&pattern)),
            ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split(&pattern)]})),
            ("normalizer", replace.clone()),
            ("normalizer", json!({"type": "Sequence", "normalizers": [replace]})),
            ("decoder", replace.clone()),
            ("decoder", json!({"type": "Sequence", "decoders": [replace]})),
        ] {
            let error = with(&[(field, value)]).err().unwrap().to_string();
            assert!(error.contains("tokenizer.json") && error.contains(field), "{error}");
        }
    }
    for pattern in ["(?:a|aa){22}b", "(?:a|b)*c", r"(?:a|b)*(?=c)", r"(a+)+\1$", r"\b(?:a|b|ab)*c"] {
        let text = "ab".repeat(20_000);
        for value in [split(pattern), json!({"type": "Sequence", "pretokenizers": [split(pattern)]})] {
            // The ids, or an error.
            let _ = with(&[("pre_tokenizer", value)]).map(|tokenizer| tokenizer.encode(&text, true));
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn expensive_tokenizer_parts_are_refused() {
    let token = |content: String| {
        json!({"id": 5000, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let mut deep = json!([]);
    for _ in 0..40 {
        deep = json!([{"type": "Sequence", "normalizers": deep}]);
    }
    let none = vec![json!({"type": "NFC"}); 1000];
    for (field, value) in [
        ("added_tokens", json!([token("x".repeat(5 << 20))])),
        ("normalizer", json!({"type": "Sequence", "normalizers": deep})),
        ("normalizer", json!({"type": "Sequence", "normalizers": none})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
    ] {
        let error = with(&[(field, value)]).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(field), "{error}");
    }
}

#[test]
fn normalizer_output_is_limited() {
    let replace =
        |from: &str, to: usize| json!({"type": "Replace", "pattern": {"String": from}, "content": "a".repeat(to)});
    let grows = json!({"type": "Sequence", "normalizers": [replace("a", 64), replace("a", 30)]});
    let tokenizer = with(&[("normalizer", grows)]).unwrap();
    assert!(tokenizer.encode(&"a".repeat(10), false).is_ok());
    let error = tokenizer.encode(&"a".repeat(2 << 20), false).unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error}");
}

#[test]
fn dropout_is_ignored() {
    let mut model = json("mha_tied/tokenizer.json")["model"].clone();
    model["dropout"] = json!(0.5);
    let tokenizer = with(&[("model", model)]).unwrap();
    let expected = with(&[]).unwrap().encode("The words of a longer text", false).unwrap();
    for _ in 0..10 {
        assert_eq!(tokenizer.encode("The words of a longer text", false).unwrap(), expected);
    }
}

#[test]
fn stripping_added_tokens_take_linear_time() {
    let token = |content: &str| {
        json!({"id": 5000, "content": content, "single_word": true, "lstrip": true, "rstrip": true,
               "normalized": false, "special": true})
    };
    let tokenizer = with(&[("added_tokens", json!([token("x")]))]).unwrap();
    let begun = Instant::now();
    for text in [" x".repeat(50_000), " ".repeat(200_000) + "x", "x".repeat(100_000), "x ".repeat(50_000)] {
        tokenizer.encode(&text, false).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // White space around it is its own.
    let around = tokenizer.encode("a  x  b", false).unwrap();
    assert_eq!(around.len(), 3, "{around:?}");
}

#[test]
fn word_piece_takes_linear_time() {
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                       "max_input_chars_per_word": 1_000_000_000,
                       "vocab": {"[UNK]": 0, "a": 1, "##a": 2, "##b": 3, "##aa": 4, "ab": 5}});
    let parts = [("model", model), ("pre_tokenizer", json!({"type": "WhitespaceSplit"})), ("added_tokens", json!([]))];
    let tokenizer = with(&parts).unwrap();
    assert_eq!(tokenizer.encode("abaaab ab c ac", false).unwrap(), [5, 4, 2, 3, 5, 0, 0]);
    let begun = Instant::now();
    assert_eq!(tokenizer.encode(&"a".repeat(100_001), false).unwrap().len(), 50_001);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

fn encode_within(tokenizer: &Tokenizer, text: &str, most: usize) -> crate::Result<Vec<u32>> {
    let mut budget = TokenizeBudget::cooperative(most, most);
    futures::executor::block_on(tokenizer.encode_within(text, EncodeMode::Document, &mut budget))
}

#[test]
fn too_long_prompts_are_refused_early() {
    let begun = Instant::now();
    for (name, tokenizer) in all_tokenizers() {
        let text = "A sentence of twelve words that nobody would write in this way. ".repeat(20_000);
        match encode_within(&tokenizer, &text, 512) {
            Err(Error::PromptTooLong { tokens, limit: 512, .. }) => assert!(tokens > 512, "{name}: {tokens}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    // A vocabulary that has not every byte.
    let metadata = &json("gguf/tokenizers.json")["byte_level"]["metadata"];
    let mut tokens = metadata["tokenizer.ggml.tokens"].clone();
    let byte = tokens.as_array().unwrap().iter().position(|token| token == "\u{104}").unwrap();
    tokens[byte] = "no such byte".into();
    let lacking = tokenizer_of(metadata, &[("tokenizer.ggml.tokens", tokens)]).unwrap();
    match encode_within(&lacking, &"a".repeat(4 << 20), 512) {
        Err(Error::PromptTooLong { tokens, .. }) => assert!((513..4 << 20).contains(&tokens), "{tokens}"),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn too_long_words_are_refused_before_tokenizing() {
    let vocab = json!([["<unk>", 0.0], ["a", -1.0], ["aa", -1.5], ["aaaa", -2.0]]);
    let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab});
    let parts = [("model", model), ("pre_tokenizer", Value::Null), ("added_tokens", json!([]))];
    let tokenizer = with(&parts).unwrap();
    match encode_within(&tokenizer, &"a".repeat(1 << 20), 512) {
        // No token has more than five characters.
        Err(Error::PromptTooLong { tokens, limit: 512, .. }) => assert_eq!(tokens, (1 << 20) / 5),
        other => panic!("{other:?}"),
    }
    // Unknown text may be one token, however long it is.
    assert_eq!(encode_within(&tokenizer, &"b".repeat(1 << 20), 512).unwrap(), [0]);
}

#[test]
fn yielding_does_not_change_ids() {
    for (name, tokenizer) in all_tokenizers() {
        for unit in
            HARD.iter().chain(&["Some words, 12 of them.\n\n  And  <|im_end|> e\u{301}\u{301}日本語 'll x\u{a0}"])
        {
            let text = unit.repeat(3000 / unit.len());
            let expected = tokenizer.encode(&text, true).unwrap();
            assert_eq!(encode_within(&tokenizer, &text, 1 << 20).unwrap(), expected, "{name}: {unit:?}");
        }
    }
}

#[test]
fn cutting_long_words_does_not_change_ids() {
    let metadata = json("gguf/tokenizers.json");
    for (name, of) in metadata["spm"].as_object().unwrap() {
        let tokenizer = tokenizer_of(&of["metadata"], &[]).unwrap();
        for text in metadata["spm_texts"].as_array().unwrap() {
            let text = format!("{} ", text.as_str().unwrap());
            let long = text.repeat(9000 / text.len() + 1);
            assert_eq!(tokenizer.encode(&long, false).unwrap(), tokenizer.encode_whole(&long), "{name}: {text:?}");
        }
    }
}

#[test]
fn many_added_tokens_are_quick_or_refused() {
    let begun = Instant::now();
    for (count, fits) in [(60_000, true), (300_000, false)] {
        let tokens: Map<String, Value> = (0..count)
            .map(|i| ((i + 1000).to_string(), json!({"content": format!("<t{i}>"), "special": true})))
            .collect();
        let mut config = Map::new();
        config.insert("added_tokens_decoder".into(), tokens.into());
        let config = Config::new("tokenizer_config.json", config);
        let added = AddedTokens::read_leniently(Path::new("no-such-directory"), &config).unwrap();
        match Tokenizer::read(&golden("mha_tied/tokenizer.json"), added) {
            Ok(tokenizer) => assert!(fits && tokenizer.id_of("<t59999>").is_some()),
            Err(Error::InvalidModel { source: Some(source), .. }) => {
                assert!(!fits && source.to_string().contains("more than 262144"), "{source}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
