//! Against transformers and llama.cpp, with the files in `tests/golden`.

mod gguf_files;
mod limits;
mod messages;
mod steps;
#[path = "../../examples/support/models.rs"]
mod support;
mod templates;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use super::{
    ChatTemplate, OutputText, Prompt, StopStrings, TemplateSource, TextProcessor, Tokenizer,
    added_tokens::{self, AddedTokens},
    budget, chat_context, class_defaults, continued_chat,
    detokenizer::Detokenizer,
    gguf,
    rendered_prompt::RenderedPrompt,
    vocab_merges,
};
use crate::{
    Error, Message,
    weights::{
        Config,
        gguf::{GgufFile, GgufMetadata},
    },
};

const DIRECTORIES: [&str; 7] =
    ["mha_tied", "gqa_llama3", "bias_linear", "mqa_yarn", "mqa_yarn_v4", "yarn_mscale", "spm_gqa"];
const GGUF_FILES: [&str; 2] = ["tiny-f32.gguf", "tiny-spm.gguf"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn cases<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, Vec<u32>)> {
    of[key].as_array().unwrap().iter().map(|case| (case["text"].as_str().unwrap(), ids(&case["ids"])))
}

fn gguf_tokenizer(path: &Path) -> Tokenizer {
    gguf::tokenizer(path, &GgufFile::open(path).unwrap().metadata).unwrap()
}

/// Every tokenizer with the ids and texts of its reference.
fn tokenizers() -> Vec<(String, Arc<TextProcessor>, Value)> {
    let directories = DIRECTORIES.map(|name| {
        let tokenizer = Tokenizer::read(&golden(name).join("tokenizer.json"), AddedTokens::default()).unwrap();
        (name.to_owned(), tokenizer, json(&format!("{name}/expected.json")))
    });
    let opt = golden("opt_v4");
    let config = vocab_merges::config(&opt, added_tokens::config(&opt).unwrap());
    let opt = vocab_merges::tokenizer(&opt, &config).unwrap();
    let opt = ("opt_v4".to_owned(), opt, json("opt_v4/expected.json"));
    let expected = json("gguf/expected.json");
    let files =
        GGUF_FILES.map(|name| (name.to_owned(), gguf_tokenizer(&golden("gguf").join(name)), expected[name].clone()));
    let text =
        |tokenizer| Arc::new(TextProcessor { tokenizer, template: None, end_ids: Vec::new(), end_of_text: None });
    directories
        .into_iter()
        .chain([opt])
        .chain(files)
        .map(|(name, tokenizer, value)| (name, text(tokenizer), value))
        .collect()
}

#[test]
fn encode_matches_transformers() {
    for (name, text, expected) in tokenizers() {
        for (input, ids) in cases(&expected, "encode_cases") {
            assert_eq!(text.tokenizer.encode(input, true).unwrap(), ids, "{name}: {input:?}");
        }
    }
}

#[test]
fn detokenizer_matches_transformers() {
    for (name, text, expected) in tokenizers() {
        for (whole, ids) in cases(&expected, "decode_cases") {
            let mut answer = OutputText::new(text.clone(), &[], Arc::default());
            let mut tokens = Vec::new();
            for id in &ids {
                tokens.extend(answer.push(*id, None).unwrap().ready);
            }
            tokens.extend(answer.finish().unwrap());
            let pieces: String = tokens.iter().map(|token| token.text.as_str()).collect();
            if name.contains("spm") && whole.contains(char::REPLACEMENT_CHARACTER) {
                // With byte tokens, bytes that are no character make its decoder lose whole characters
                // beside them. In a stream they have been given by then; nothing else may differ.
                let mut ours = pieces.chars();
                let kept = whole.chars().filter(|c| *c != char::REPLACEMENT_CHARACTER);
                assert!(kept.into_iter().all(|c| ours.any(|o| o == c)), "{name}: {pieces:?} for {whole:?}");
                assert!(pieces.contains(char::REPLACEMENT_CHARACTER));
            } else {
                assert_eq!(pieces, whole, "{name}: {ids:?}");
            }
            assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), ids);
        }
    }
}

/// The text of an answer to a prompt, and the most tokens that waited for it at a time.
fn answer_text(text: &Arc<TextProcessor>, prompt: &[u32], answer: &[u32]) -> (String, usize) {
    let mut detokenizer = Detokenizer::new(text.clone(), prompt);
    let (mut out, mut waiting, mut most_waiting) = (String::new(), 0, 0);
    for id in answer {
        match detokenizer.push(*id).unwrap() {
            Some(piece) => {
                waiting = 0;
                out += &piece;
            }
            None => waiting += 1,
        }
        most_waiting = most_waiting.max(waiting);
    }
    (out + &detokenizer.finish().unwrap(), most_waiting)
}

#[test]
fn detokenizer_continues_the_prompt() {
    for (name, text, expected) in tokenizers() {
        for (input, ids) in cases(&expected, "encode_cases") {
            let (whole, _) = answer_text(&text, &[], &ids);
            for at in 0..=ids.len() {
                let (prompt, answer) = ids.split_at(at);
                let (begin, _) = answer_text(&text, &[], prompt);
                let (rest, _) = answer_text(&text, prompt, answer);
                if begin.ends_with(char::REPLACEMENT_CHARACTER) && !input.contains(char::REPLACEMENT_CHARACTER) {
                    let begun = begin.trim_end_matches(char::REPLACEMENT_CHARACTER);
                    assert_eq!(format!("{begun}{rest}"), whole, "{name}: {input:?} at {at}");
                } else {
                    assert_eq!(begin + &rest, whole, "{name}: {input:?} at {at}");
                }
            }
        }
    }
}

#[test]
fn first_token_of_an_answer_keeps_its_space() {
    let (_, text, _) = tokenizers().into_iter().find(|(name, ..)| name == "spm_gqa").unwrap();
    let ids = text.tokenizer.encode("The dog", true).unwrap();
    let cut = (1..ids.len()).find(|at| text.tokenizer.token_of(ids[*at]).unwrap().starts_with("▁d")).unwrap();
    let (prompt, answer) = ids.split_at(cut);
    assert_eq!(answer_text(&text, prompt, answer).0, " dog");
    assert_eq!(answer_text(&text, &[], answer).0, "dog", "as the decoding of these alone");
    let stops = Arc::new(StopStrings::new(vec![" d".into()]));
    let mut stopped = OutputText::new(text.clone(), prompt, stops);
    let steps: Vec<_> = answer.iter().map(|id| stopped.push(*id, None).unwrap()).collect();
    assert!(steps.iter().any(|step| step.stopped), "{steps:?}");
}

#[test]
fn invalid_utf8_does_not_hold_back_tokens() {
    for (name, text, _) in tokenizers() {
        let byte = |byte: u8| {
            let fallback = text.tokenizer.id_of(&format!("<0x{byte:02X}>"));
            // The first 68 of the bytes that stand for other characters, U+0100 and on, are 0 to 32, 127 to 160 and
            // 173.
            fallback.or_else(|| text.tokenizer.id_of(&char::from(byte).to_string()))
        };
        let answer_of = |ids: &[u32]| {
            let mut answer = OutputText::new(text.clone(), &[], Arc::default());
            let mut tokens: Vec<_> = ids.iter().flat_map(|id| answer.push(*id, None).unwrap().ready).collect();
            tokens.extend(answer.finish().unwrap());
            assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), ids, "{name}");
            tokens.into_iter().map(|token| token.text).collect::<String>()
        };
        for pattern in [&[0xE6][..], &[0xF0, 0xF0, 0xE6], &[0xBF, 0xC3], &[0xE6, 0xB5], &[0xF0, 0xBF, 0xBF], &[0xFF]] {
            let Some(pattern) = pattern.iter().map(|b| byte(*b)).collect::<Option<Vec<_>>>() else { continue };
            let ids: Vec<u32> = pattern.iter().copied().cycle().take(3000).collect();
            let (out, most_waiting) = answer_text(&text, &[], &ids);
            assert!(most_waiting < 4, "{name}: {most_waiting}");
            assert_eq!(out, text.tokenizer.decode(&ids).unwrap(), "{name}");
            assert_eq!(answer_of(&ids), out, "{name}");
        }
    }
}

#[test]
fn detokenizer_matches_decode_for_random_tokens() {
    for (name, text, _) in tokenizers().into_iter().filter(|(name, ..)| !name.contains("spm")) {
        let count = text.tokenizer.vocab_size() as u32;
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % count
        };
        let ids: Vec<u32> = (0..4000).map(|_| random()).filter(|id| !text.tokenizer.is_special(*id)).collect();
        let (out, most_waiting) = answer_text(&text, &[], &ids);
        assert!(most_waiting < 4, "{name}: {most_waiting}");
        assert_eq!(out, text.tokenizer.decode(&ids).unwrap(), "{name}");
    }
}

#[test]
fn added_tokens_match_transformers() {
    let golden_file = json("added_tokens.json");
    let dir = std::env::temp_dir().join(format!("tokenflow-added-{}", std::process::id()));
    for case in golden_file["directories"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        let mut tokenizer = json("mha_tied/tokenizer.json");
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        for token in golden_file["in_vocabulary"].as_array().unwrap() {
            let next = vocabulary.len();
            vocabulary.entry(token.as_str().unwrap()).or_insert(next.into());
        }
        let mut added = case["added_tokens"].clone();
        for token in added.as_array_mut().unwrap() {
            token["id"] = vocabulary[token["content"].as_str().unwrap()].clone();
        }
        tokenizer["added_tokens"] = added;
        std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (file, content) in case["files"].as_object().unwrap() {
            std::fs::write(dir.join(file), content.to_string()).unwrap();
        }
        let empty = || Config::new(dir.join("tokenizer_config.json"), Map::new());
        let config = added_tokens::config(&dir).unwrap().unwrap_or_else(empty);
        let tokens = AddedTokens::read(&dir, &config).unwrap();
        let tokenizer = Tokenizer::read(&dir.join("tokenizer.json"), tokens).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let text = Arc::new(TextProcessor { tokenizer, template: None, end_ids: Vec::new(), end_of_text: None });
        for token in case["tokens"].as_array().unwrap() {
            let id = token[0].as_u64().unwrap() as u32;
            assert_eq!(text.tokenizer.token_of(id).as_deref(), token[1].as_str(), "{name}");
        }
        for case in case["cases"].as_array().unwrap() {
            let expected = ids(&case[1]);
            assert_eq!(text.tokenizer.encode(case[0].as_str().unwrap(), false).unwrap(), expected, "{name}: {case}");
            assert_eq!(answer_text(&text, &[], &expected).0, case[2].as_str().unwrap(), "{name}: {case}");
        }
    }
}

#[test]
fn new_added_tokens_stay_below_the_vocab_size() {
    let path = golden("mha_tied/tokenizer.json");
    let config = json!({"pad_token": "[PAD]", "eos_token": 7,
        "additional_special_tokens": ["<|one|>", "<|two|>", 3, null],
        "added_tokens_decoder": {"first": {"content": "x"}, "5": "text", "6": {}}});
    let config = Config::new("tokenizer_config.json", config.as_object().unwrap().clone());
    let count = Tokenizer::read(&path, AddedTokens::default()).unwrap().vocab_size();
    let tokens = AddedTokens::read_leniently(Path::new("no-such-directory"), &config).unwrap().below(count + 2);
    let tokenizer = Tokenizer::read(&path, tokens).unwrap();
    assert_eq!(tokenizer.encode("<|one|>", false).unwrap(), [count as u32 + 1]);
    assert!(tokenizer.encode("<|two|>", false).unwrap().iter().all(|id| (*id as usize) < count));
}

#[test]
fn tokenizer_classes_have_default_tokens() {
    let path = golden("mha_tied/tokenizer.json");
    let known = |text: &str| Tokenizer::read(&path, AddedTokens::default()).unwrap().id_of(text).is_some();
    assert!(known("<|im_end|>") && !known("<|endoftext|>"));
    let tokens = |config: Value| {
        let config = Config::new("tokenizer_config.json", config.as_object().unwrap().clone());
        class_defaults::tokens(&config).collect::<Vec<_>>()
    };
    let end = "<|endoftext|>";
    assert_eq!(
        tokens(json!({"tokenizer_class": "GPT2TokenizerFast"})),
        [("bos_token", end), ("eos_token", end), ("unk_token", end)]
    );
    assert_eq!(
        tokens(json!({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "unk_token": null})),
        [("pad_token", end)]
    );
    assert_eq!(tokens(json!({"tokenizer_class": "LlamaTokenizer"}))[1], ("eos_token", "</s>"));
    assert_eq!(tokens(json!({"tokenizer_class": "PreTrainedTokenizerFast"})), []);
    assert_eq!(tokens(json!({})), []);
    // A default adds no token to a vocabulary.
    let config =
        Config::new("tokenizer_config.json", json!({"tokenizer_class": "Qwen2Tokenizer"}).as_object().unwrap().clone());
    let added = AddedTokens::read_leniently(Path::new("no-such-directory"), &config).unwrap();
    assert_eq!(Tokenizer::read(&path, added).unwrap().id_of(end), None);
}

#[test]
fn many_similar_stop_strings_are_fast() {
    let text = Arc::new(chatml());
    let stops = (0..2000).map(|i| format!("{}{i}!", "a".repeat(1000))).collect();
    let mut answer = OutputText::new(text.clone(), &[], Arc::new(StopStrings::new(stops)));
    let [a] = text.tokenizer.encode("a", false).unwrap()[..] else { panic!() };
    let begun = std::time::Instant::now();
    let mut released = 0;
    for _ in 0..20_000 {
        released += answer.push(a, None).unwrap().ready.len();
    }
    assert_eq!(released, 19_000, "all but what may become one");
    assert!(begun.elapsed().as_secs() < 10);
    let rest = text.tokenizer.encode("17!", false).unwrap();
    let rest: String = rest.into_iter().flat_map(|id| answer.push(id, None).unwrap().ready).map(|t| t.text).collect();
    assert_eq!(rest, "", "of the held text nothing is left before the stop string");
}

#[test]
fn character_comes_with_its_last_token() {
    let (_, text, _) = tokenizers().remove(0);
    let ids = text.tokenizer.encode("a🚀b", false).unwrap();
    let mut detokenizer = Detokenizer::new(text.clone(), &[]);
    let pieces: Vec<_> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
    assert!(pieces.contains(&None), "{pieces:?}");
    assert_eq!(pieces.into_iter().flatten().collect::<Vec<_>>().concat(), "a🚀b");
}

#[test]
fn smollm2_encode_matches_llama_cpp() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokenizer = gguf_tokenizer(&runtime.block_on(support::smollm2_gguf()).unwrap());
    for case in json("smollm2/tokenize.json")["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{text:?}");
    }
}

fn template(source: impl Into<TemplateSource>, value: &Value) -> ChatTemplate {
    let token = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    ChatTemplate::new(Path::new("test"), source, token("bos_token"), token("eos_token")).unwrap()
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Another template.
pub fn chatml_with(source: &str) -> Option<ChatTemplate> {
    Some(template(source.to_owned(), &Value::Null))
}

/// A processor that writes conversations in ChatML.
pub fn chatml() -> TextProcessor {
    let tokenizer = Tokenizer::read(&golden("mha_tied/tokenizer.json"), AddedTokens::default()).unwrap();
    TextProcessor { tokenizer, template: chatml_with(CHATML), end_ids: Vec::new(), end_of_text: None }
}

fn encode_chat(text: &TextProcessor, messages: &[Message], vars: &Map<String, Value>) -> crate::Result<Vec<u32>> {
    text.encode(&Prompt::Chat(messages.to_vec()), vars)
}

#[test]
fn chat_encodes_like_its_rendered_text() {
    let text = chatml();
    let messages = [Message::system("Be < brief >."), Message::user("1 <2> 3 <| 4"), Message::assistant("<b>ok</b>")];
    let rendered = text.template.as_ref().unwrap().render(chat_context(&messages, &Map::new()).unwrap()).unwrap();
    assert_eq!(encode_chat(&text, &messages, &Map::new()).unwrap(), text.tokenizer.encode(&rendered, false).unwrap());
}

#[test]
fn stop_strings_match_across_tokens() {
    let text = Arc::new(chatml());
    let run = |input: &str, stops: &[&str]| {
        let stop_strings = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut answer = OutputText::new(text.clone(), &[], Arc::new(stop_strings));
        let mut out = String::new();
        for id in text.tokenizer.encode(input, false).unwrap() {
            let step = answer.push(id, None).unwrap();
            out.extend(step.ready.iter().map(|token| token.text.as_str()));
            assert!(stops.iter().all(|stop| !out.contains(stop)));
            if step.stopped {
                return (out, true);
            }
        }
        out.extend(answer.finish().unwrap().iter().map(|token| token.text.as_str()));
        (out, false)
    };
    assert_eq!(run("one two three", &["two"]), ("one ".into(), true));
    assert_eq!(run("one two three", &["three", "wo"]), ("one t".into(), true));
    assert_eq!(run("abababc", &["ababc"]), ("ab".into(), true));
    assert_eq!(run("one two thre", &["three"]), ("one two thre".into(), false));
    assert_eq!(run("日本🚀語", &["🚀"]), ("日本".into(), true));
    assert_eq!(run("stop", &["stop"]), (String::new(), true));
}
