//! Chat templates, from `TextModel::chat` to the prompt.

use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use tokenflow::{Error, GenerateConfig, LoadConfig, Message, Result, load_model, testing::ScriptedModel};

use crate::{TempDir, golden_path, read_json};

/// The prompt that a template renders.
async fn prompt(template: &str, messages: &[Message], vars: Map<String, Value>) -> Result<String> {
    let prompt = Arc::new(Mutex::new(String::new()));
    let seen = prompt.clone();
    // The model answers what is before this token.
    let template = format!("{template}<|reply|>");
    let model = ScriptedModel::new(move |prompt| {
        *seen.lock().unwrap() = prompt.to_owned();
        String::new()
    });
    let model = model.load_config(LoadConfig::new().chat_template(template)).build()?;
    model.chat(messages, GenerateConfig::new().template_vars(vars)).text().await?;
    let prompt = prompt.lock().unwrap().clone();
    Ok(prompt)
}

#[tokio::test]
async fn prompts_match_transformers() {
    let mut rendered = 0;
    for file in golden_path("templates").read_dir().unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let golden = read_json(&format!("templates/{name}"));
        // The scripted model has no named templates, no tokens of its own to begin with, and today's date.
        let Some(source) = golden["chat_template"].as_str().filter(|source| !source.contains("strftime_now")) else {
            continue;
        };
        let tokens = ["bos_token", "eos_token"].map(|name| format!("{{%- set {name} = {} %}}", golden[name]));
        let template = tokens.concat() + source.strip_suffix('\n').unwrap_or(source);
        for case in golden["cases"].as_array().unwrap() {
            let messages = serde_json::from_value::<Vec<Message>>(case["messages"].clone());
            let (Ok(messages), true) = (messages, case["add_generation_prompt"] == true) else { continue };
            let vars = case["vars"].as_object().cloned().unwrap_or_default();
            match (prompt(&template, &messages, vars).await, case["expected"].as_str(), &case["error"]) {
                (Ok(prompt), Some(expected), _) => assert_eq!(prompt, expected, "{name}: {case}"),
                (Err(Error::ChatTemplate { .. }), None, Value::Null) => {}
                (Err(Error::ChatTemplate { reason }), None, error) => assert_eq!(reason, *error, "{name}: {case}"),
                (prompt, ..) => panic!("{name}: {prompt:?} for {case}"),
            }
            rendered += 1;
        }
    }
    assert!(rendered > 150, "{rendered}");
}

#[tokio::test]
async fn reserved_template_variables_are_refused_by_name() {
    let refused = |result: Result<String>| match result {
        Err(Error::InvalidConfig { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let hello = [Message::user("Hello")];
    for name in ["messages", "add_generation_prompt", "bos_token", "eos_token"] {
        let vars = Map::from_iter([(name.to_owned(), json!("x"))]);
        assert_eq!(refused(prompt("", &hello, vars).await), "template_vars", "{name}");
    }
    let nested = (0..100).fold(Value::Null, |inner, _| json!([inner]));
    let vars = Map::from_iter([("tools".to_owned(), nested.clone())]);
    assert_eq!(refused(prompt("", &hello, vars).await), "template_vars");
    let messages = [Message::user("Hello").field("parts", nested)];
    assert_eq!(refused(prompt("", &messages, Map::new()).await), "messages");
}

#[test]
fn messages_round_trip_through_json() {
    let call = json!([{"type": "function", "function": {"name": "now", "arguments": {}}}]);
    for (json, content) in [
        (json!({"role": "user", "content": "Hi"}), "Hi"),
        (json!({"role": "assistant", "content": "One moment.", "tool_calls": call}), "One moment."),
        (json!({"role": "tool", "content": "noon", "tool_call_id": "1"}), "noon"),
        (json!({"role": "assistant", "content": null, "tool_calls": call}), ""),
        (json!({"role": "user", "content": [{"type": "text", "text": "Hi"}]}), ""),
    ] {
        let message: Message = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(message.content, content);
        assert_eq!(serde_json::to_value(&message).unwrap(), json);
    }
    let without: Message = serde_json::from_value(json!({"role": "assistant", "tool_calls": call})).unwrap();
    assert_eq!(without, Message::assistant("").field("tool_calls", call));
    for bad in [json!({"role": "user"}), json!({"content": "x"}), json!({"role": "critic", "content": "x"}), json!(3)] {
        assert!(serde_json::from_value::<Message>(bad.clone()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn tool_template_is_used_with_tools() {
    let (default, tool_use) = ("one", "one two three four");
    let in_config = TempDir::copy_of("mha_tied", "named");
    let mut config: Value = read_json("mha_tied/tokenizer_config.json");
    config["chat_template"] =
        json!([{"name": "tool_use", "template": tool_use}, {"name": "default", "template": default}]);
    std::fs::write(in_config.0.join("tokenizer_config.json"), config.to_string()).unwrap();
    let _ = std::fs::remove_file(in_config.0.join("chat_template.jinja"));
    let in_files = TempDir::copy_of("mha_tied", "files");
    std::fs::write(in_files.0.join("chat_template.jinja"), default).unwrap();
    std::fs::create_dir(in_files.0.join("additional_chat_templates")).unwrap();
    std::fs::write(in_files.0.join("additional_chat_templates/tool_use.jinja"), tool_use).unwrap();
    for dir in [in_config, in_files] {
        let model = load_model(&dir.0, LoadConfig::new()).await.unwrap();
        let config = || GenerateConfig::new().max_tokens(1);
        for (template, config) in [
            (default, config()),
            (tool_use, config().template_var("tools", json!([{"name": "now"}]))),
            (default, config().template_var("tools", Value::Null)),
        ] {
            model.generate(template, config.clone()).text().await.unwrap();
            let expected = model.metrics().prompt_tokens;
            model.chat(&[Message::user("Hello")], config).text().await.unwrap();
            assert_eq!(model.metrics().prompt_tokens, expected, "{template}");
        }
    }
}

#[tokio::test]
async fn bad_template_disables_only_chat() {
    let config = |template: Value| {
        let mut config: Value = read_json("mha_tied/tokenizer_config.json");
        config["chat_template"] = template;
        config.to_string()
    };
    let named = json!([{"name": "tool_use", "template": "x"}]);
    for (file, content, reason) in [
        ("chat_template.jinja", "{% if %}".to_owned(), "line 1"),
        ("chat_template.jinja", "{% for m in messages %}".to_owned(), "endfor"),
        ("chat_template.json", "{".to_owned(), ""),
        ("tokenizer_config.json", config(named), "default"),
        ("tokenizer_config.json", config(json!("{{ (1 }}")), "line 1"),
        ("tokenizer_config.json", config(json!(7)), "default"),
    ] {
        let dir = TempDir::copy_of("mha_tied", "bad-template");
        let _ = std::fs::remove_file(dir.0.join("chat_template.jinja"));
        std::fs::write(dir.0.join(file), content).unwrap();
        let model = load_model(&dir.0, LoadConfig::new()).await.unwrap();
        model.generate("a", GenerateConfig::new().max_tokens(1)).text().await.unwrap();
        let chat = model.chat(&[Message::user("a")], GenerateConfig::new().max_tokens(1)).text().await;
        let error = chat.unwrap_err();
        assert!(matches!(&error, Error::InvalidModel { path, .. } if path.ends_with(file)), "{file}: {error:?}");
        assert!(error.to_string().contains(reason), "{error}");
        let other = load_model(&dir.0, LoadConfig::new().chat_template("{{ messages[0].content }}")).await.unwrap();
        other.chat(&[Message::user("a")], GenerateConfig::new().max_tokens(1)).text().await.unwrap();
    }
}

#[tokio::test]
async fn continue_final_message_prefills_the_answer() {
    let model = load_model(golden_path("mha_tied"), LoadConfig::new().chat_template("{{ messages[0].content }}!"));
    let model = model.await.unwrap();
    let config = || GenerateConfig::new().max_tokens(8);
    let expected = model.generate("one two", config()).text().await.unwrap();
    let continued = [Message::assistant("one two")];
    let chat = model.chat(&continued, config().continue_final_message(true)).text().await;
    assert_eq!(chat.unwrap(), expected);
    let empty = [Message::user("a").field("content", Value::Null)];
    let refused = model.chat(&empty, config().continue_final_message(true)).text().await;
    assert!(matches!(refused, Err(Error::InvalidConfig { field: "continue_final_message", .. })), "{refused:?}");
}

#[test]
fn developer_role() {
    let message: Message = serde_json::from_value(json!({"role": "developer", "content": "Be brief."})).unwrap();
    assert_eq!(message, Message::developer("Be brief."));
    assert_eq!(serde_json::to_value(&message).unwrap(), json!({"role": "developer", "content": "Be brief."}));
}
