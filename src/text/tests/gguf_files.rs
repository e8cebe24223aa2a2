//! Tokenizers of GGUF files.

use super::*;

/// The tokenizer of a GGUF file with this metadata, and with others instead or on top.
pub fn tokenizer_of(metadata: &Value, with: &[(&str, Value)]) -> crate::Result<Tokenizer> {
    let mut metadata = metadata.clone();
    for (key, value) in with {
        metadata[key] = value.clone();
    }
    gguf::tokenizer(Path::new("model.gguf"), &GgufMetadata::of_json(Path::new("model.gguf"), &metadata))
}

#[test]
fn gguf_pre_tokenizers_match_tokenizer_json() {
    let golden = json("gguf/tokenizers.json");
    let of = &golden["byte_level"];
    for group in of["groups"].as_array().unwrap() {
        for kind in group["kinds"].as_array().unwrap() {
            let tokenizer = tokenizer_of(&of["metadata"], &[("tokenizer.ggml.pre", kind.clone())]).unwrap();
            for (i, text) in golden["texts"].as_array().unwrap().iter().enumerate() {
                let expected = ids(&of["ids"][i][group["ids"][i].as_u64().unwrap() as usize]);
                assert_eq!(tokenizer.encode(text.as_str().unwrap(), true).unwrap(), expected, "{kind}: {text}");
            }
        }
    }
    for (name, of) in golden["spm"].as_object().unwrap() {
        let tokenizer = tokenizer_of(&of["metadata"], &[]).unwrap();
        for (text, expected) in golden["spm_texts"].as_array().unwrap().iter().zip(of["ids"].as_array().unwrap()) {
            assert_eq!(tokenizer.encode(text.as_str().unwrap(), true).unwrap(), ids(expected), "{name}: {text}");
        }
    }
}

#[test]
fn gguf_keys_decide_bos_and_eos() {
    let golden = json("gguf/tokenizers.json");
    let metadata = &golden["byte_level"]["metadata"];
    let special = |key: &str| metadata[key].as_u64().unwrap() as u32;
    let (bos, eos) = (special("tokenizer.ggml.bos_token_id"), special("tokenizer.ggml.eos_token_id"));
    let around = |pre: &str, with: &[(&str, bool)]| {
        let mut pairs = vec![("tokenizer.ggml.pre", Value::from(pre))];
        pairs.extend(with.iter().map(|(key, adds)| (*key, Value::from(*adds))));
        tokenizer_of(metadata, &pairs).unwrap().encode("", true).unwrap()
    };
    let (add_bos, add_eos) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token");
    assert_eq!(around("qwen2", &[]), Vec::<u32>::new());
    assert_eq!(around("qwen2", &[(add_bos, true)]), [bos]);
    assert_eq!(around("tekken", &[(add_eos, true)]), [bos, eos]);
    assert_eq!(around("llama-bpe", &[(add_bos, false), (add_eos, true)]), [eos]);
    // Llama's own files leave out the ids.
    let mut spm = golden["spm"]["llama"]["metadata"].clone();
    spm.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_id"));
    assert_eq!(tokenizer_of(&spm, &[(add_eos, true.into())]).unwrap().encode("", true).unwrap(), [1, 2]);
}

#[test]
fn invalid_gguf_tokenizers_name_key_and_value() {
    let golden = json("gguf/tokenizers.json");
    let (bpe, spm) = (&golden["byte_level"]["metadata"], &golden["spm"]["llama"]["metadata"]);
    let long = format!("a {}", "b".repeat(100));
    let chain: Vec<_> = (1..=1000).map(|len| "a".repeat(len)).collect();
    let mut chained = spm.clone();
    chained["tokenizer.ggml.scores"] = vec![0.5; chain.len()].into();
    chained["tokenizer.ggml.token_type"] = vec![1; chain.len()].into();
    for (metadata, key, value, why) in [
        (bpe, "model", "bert".into(), "\"bert\" is not a tokenizer of this version: gpt2, llama, gemma4"),
        (bpe, "model", Value::from(1), "is not text"),
        (bpe, "pre", "no-such".into(), "\"no-such\" is not a pre-tokenizer of this version"),
        (bpe, "tokens", vec!["a", "b", "a"].into(), "\"a\" is there twice, as 0 and 2"),
        (bpe, "token_type", vec![1, 1].into(), "is not an array of 1103 whole numbers"),
        (bpe, "merges", vec!["ab"].into(), "\"ab\" is not a pair"),
        (bpe, "merges", vec!["a \u{4e00}"].into(), "Token `\u{4e00}` out of vocabulary"),
        (bpe, "merges", vec![long.as_str()].into(), "makes is not in the vocabulary"),
        (bpe, "merges", 1.into(), "is not an array"),
        (spm, "scores", vec![0.5].into(), "is not an array of 669 numbers"),
        (&chained, "tokens", chain.into(), "499500 pairs of tokens make others, too many to hold"),
        (spm, "model", "gemma4".into(), "tokenizer.ggml.merges: is missing"),
    ] {
        let key = format!("tokenizer.ggml.{key}");
        let error = tokenizer_of(metadata, &[(&key, value)]).err().unwrap().to_string();
        assert!(error.contains("model.gguf") && error.contains(why), "{error}");
        assert!(error.contains(&key) || why.contains("tokenizer.ggml"), "{error}");
    }
}

fn end_ids_of(metadata: &Value) -> Vec<u32> {
    let tokenizer = tokenizer_of(metadata, &[]).unwrap();
    gguf::end_ids(&GgufMetadata::of_json(Path::new("model.gguf"), metadata), &tokenizer)
}

/// Byte-level metadata whose first tokens have these names and types.
fn with_tokens(tokens: &[(&str, i64)]) -> Value {
    let mut metadata = json("gguf/tokenizers.json")["byte_level"]["metadata"].clone();
    for (id, (token, kind)) in tokens.iter().enumerate() {
        metadata["tokenizer.ggml.tokens"][id] = (*token).into();
        metadata["tokenizer.ggml.token_type"][id] = (*kind).into();
    }
    metadata
}

#[test]
fn gguf_control_tokens_are_known_by_name() {
    for kind in [1, 3, 4, 5, 77] {
        for name in
            ["<|im_end|>", "<end_of_turn>", "<eos>", "[EOT]", "<turn|>", "<|flush|>", "<|calls|>", "<|fim_pad|>"]
        {
            let mut metadata = with_tokens(&[("<|endoftext|>", 3), ("<|fim_prefix|>", kind), (name, kind)]);
            metadata["tokenizer.ggml.eos_token_id"] = 0.into();
            let tokenizer = tokenizer_of(&metadata, &[]).unwrap();
            assert_eq!(end_ids_of(&metadata), [0, 2], "{name} of type {kind}");
            assert!(tokenizer.is_special(1) && tokenizer.is_special(2), "{name} of type {kind}");
            assert_eq!(tokenizer.encode(&format!("{name}<|fim_prefix|>"), false).unwrap(), [2, 1], "{name}");
        }
    }
    // A name of harmony's is one token, and text if the file says so.
    let tokenizer = tokenizer_of(&with_tokens(&[("<|channel|>", 1), ("<|other|>", 1)]), &[]).unwrap();
    assert_eq!(tokenizer.encode("<|channel|>", false).unwrap(), [0]);
    assert!(!tokenizer.is_special(0));
    assert!(tokenizer.encode("<|other|>", false).unwrap().len() > 1);
}

#[test]
fn message_part_ends_do_not_end_an_answer() {
    for (tokens, expected) in [
        (["<|end|>", "<|call|>", "<|im_end|>"], vec![0, 1, 2]),
        (["<|end|>", "<|call|>", "<|return|>"], vec![1, 2]),
        (["<|end|>", "<|calls|>", "<|flush|>"], vec![1, 2]),
        (["</s>", "<eos>", "<|tool_response>"], vec![1, 2]),
        (["</s>", "<eos>", "<turn|>"], vec![0, 1, 2]),
    ] {
        let mut metadata = with_tokens(&tokens.map(|token| (token, 4)));
        metadata["tokenizer.ggml.eos_token_id"] = 2.into();
        assert_eq!(end_ids_of(&metadata), expected, "{tokens:?}");
    }
}

#[test]
fn invalid_optional_metadata_is_ignored() {
    let golden = json("gguf/tokenizers.json");
    let (bpe, spm) = (&golden["byte_level"]["metadata"], &golden["spm"]["llama"]["metadata"]);
    for (metadata, key, value) in [
        (bpe, "bos_token_id", 5000.into()),
        (bpe, "bos_token_id", "one".into()),
        (bpe, "eos_token_id", Value::from(-1)),
        (bpe, "eot_token_id", 5000.into()),
        (bpe, "eom_token_id", Value::from(u32::MAX)),
        (bpe, "fim_pad_token_id", vec![1, 2].into()),
        (bpe, "padding_token_id", Value::from(u32::MAX)),
        (bpe, "add_bos_token", "yes".into()),
        (bpe, "add_eos_token", 2.into()),
        (bpe, "token_type", vec![1; 2000].into()),
        (spm, "unknown_token_id", 669.into()),
        (spm, "eos_token_id", Value::from(-1)),
        (spm, "add_space_prefix", "no".into()),
        (spm, "scores", vec![1; 669].into()),
    ] {
        let mut metadata = metadata.clone();
        metadata[format!("tokenizer.ggml.{key}")] = value.clone();
        let tokenizer = tokenizer_of(&metadata, &[]).unwrap_or_else(|error| panic!("{key}: {value}: {error}"));
        assert!(!tokenizer.encode("a b", true).unwrap().is_empty(), "{key}: {value}");
        let ends = end_ids_of(&metadata);
        assert!(ends.iter().all(|id| tokenizer.token_of(*id).is_some()), "{key}: {value}: {ends:?}");
    }
    let mut metadata = spm.clone();
    metadata["tokenizer.ggml.bos_token_id"] = 669.into();
    assert_eq!(tokenizer_of(&metadata, &[]).unwrap().encode("", true).unwrap(), [1], "the default of this kind");
}

#[test]
fn empty_tokens_fill_gaps() {
    let tokenizer = tokenizer_of(&with_tokens(&[("", 1), ("", 1)]), &[]).unwrap();
    assert!(!tokenizer.encode("a b", true).unwrap().is_empty());
}

#[test]
fn hostile_gguf_arrays_are_errors_or_ignored() {
    let golden = json("gguf/tokenizers.json");
    let (bpe, spm) = (&golden["byte_level"]["metadata"], &golden["spm"]["llama"]["metadata"]);
    let begun = std::time::Instant::now();
    let count = bpe["tokenizer.ggml.tokens"].as_array().unwrap().len();
    let long: Vec<String> = (0..40_000).map(|i| format!("{i:05}").repeat(200)).collect();
    let binary = |len: usize| (0..1usize << len).map(move |bits| format!("{bits:0len$b}").replace('0', "a"));
    let dense: Vec<String> = (1..=17).flat_map(binary).collect();
    let million: Vec<String> = (0..1_000_000).map(|i| format!("t{i}")).collect();
    let of_len = |len: usize, value: Value| Value::from(vec![value; len]);
    for (metadata, key, value) in [
        (bpe, "tokens", json!([])),
        (bpe, "tokens", json!([1, 2])),
        (bpe, "tokens", json!("a")),
        (bpe, "tokens", json!(["\u{fffd}", "\u{fffd}"])),
        (bpe, "tokens", of_len(count, json!(""))),
        (bpe, "tokens", million.clone().into()),
        (spm, "tokens", long.into()),
        (spm, "tokens", dense.into()),
        (spm, "tokens", million.into()),
        (bpe, "token_type", of_len(count, json!(-1))),
        (bpe, "token_type", of_len(count, json!(1.5))),
        (bpe, "token_type", of_len(count, json!("1"))),
        (bpe, "token_type", of_len(count - 1, json!(1))),
        (bpe, "token_type", of_len(3, json!(3))),
        (bpe, "token_type", json!(true)),
        (bpe, "merges", json!([])),
        (bpe, "merges", json!([""])),
        (bpe, "merges", json!([" "])),
        (bpe, "merges", json!(["a"])),
        (bpe, "merges", json!(["a  b"])),
        (bpe, "merges", json!(["no-such token"])),
        (bpe, "merges", json!([1])),
        (bpe, "merges", of_len(1_000_000, json!("a b"))),
        (spm, "scores", of_len(669, json!("0"))),
        (spm, "scores", of_len(669, json!(f64::MAX))),
        (spm, "scores", of_len(668, json!(0.5))),
        (spm, "scores", json!(1)),
    ] {
        let key = format!("tokenizer.ggml.{key}");
        let found = tokenizer_of(metadata, &[(&key, value)]);
        match found.and_then(|tokenizer| tokenizer.encode("Hello  world ü", true)) {
            Ok(_) => {}
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("model.gguf") && error.contains("tokenizer.ggml."), "{key}: {error}");
            }
        }
    }
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
