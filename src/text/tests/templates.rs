//! Chat templates against transformers and Jinja, and their limits.

use chrono::{NaiveDate, NaiveDateTime};

use super::*;

/// When the goldens were rendered.
fn now() -> NaiveDateTime {
    NaiveDate::from_ymd_opt(2025, 3, 4).unwrap().and_hms_micro_opt(5, 6, 7, 89).unwrap()
}

/// The names of the goldens of templates.
fn template_names() -> Vec<String> {
    let files = golden("templates").read_dir().unwrap().map(|file| file.unwrap().path());
    let mut names: Vec<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.retain(|name| !["expressions", "language", "continued"].contains(&&name[..]));
    names.sort();
    names
}

/// A golden's messages and variables as `TextModel::chat` hands them to the template, or as transformers does if a role
/// is unknown here.
fn context(case: &Value) -> Map<String, Value> {
    let vars = case["vars"].as_object().cloned().unwrap_or_default();
    let mut context = match serde_json::from_value::<Vec<Message>>(case["messages"].clone()) {
        Ok(messages) => chat_context(&messages, &vars).unwrap(),
        Err(_) => {
            let mut context = vars;
            context.insert("messages".into(), case["messages"].clone());
            context
        }
    };
    context.insert("add_generation_prompt".into(), case["add_generation_prompt"].clone());
    context
}

#[test]
fn templates_match_transformers() {
    let path = golden("mha_tied/tokenizer.json");
    let mut tokenizer = tokenizers::Tokenizer::from_file(&path).unwrap();
    let control = ["[INST]", "[|user|]", "<｜User｜>", "</s>"].map(|text| tokenizers::AddedToken::from(text, true));
    tokenizer.add_special_tokens(control).unwrap();
    let special = Tokenizer::new(&path, tokenizer).unwrap();
    let names = template_names();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let value = json(&format!("templates/{name}.json"));
        let cases = value["cases"].as_array().unwrap();
        assert!(cases.len() > 5, "{name}");
        let sources = match &value["chat_template"] {
            Value::Array(named) => named.clone(),
            source => vec![json!({"name": "default", "template": source})],
        };
        let named = |name: &str| {
            let source = sources.iter().find(|entry| entry["name"] == name)?;
            Some(source["template"].as_str().unwrap().to_owned())
        };
        let source = TemplateSource { default: named("default").unwrap(), tool_use: named("tool_use") };
        let template = template(source, &value).at(now());
        for case in cases {
            let plain = context(case);
            let rendered = RenderedPrompt::new(&template, plain.clone());
            if let Ok(rendered) = &rendered {
                let ids = budget::at_once(rendered.encode(&special, &mut budget::TokenizeBudget::unlimited()))
                    .unwrap()
                    .unwrap();
                assert_eq!(ids, special.encode(&rendered.text, false).unwrap(), "{name}: {}", rendered.text);
            }
            for render in [template.render(plain), rendered.map(|rendered| rendered.text)] {
                match (render, case["expected"].as_str(), case.get("error")) {
                    (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{name}: {case}"),
                    (Err(Error::ChatTemplate { .. }), None, Some(Value::Null)) => {}
                    (Err(Error::ChatTemplate { reason }), None, Some(expected)) => {
                        assert_eq!(reason, *expected, "{name}")
                    }
                    (result, ..) => panic!("{name}: {result:?} for {case}"),
                }
            }
        }
    }
}

#[test]
fn expressions_match_python() {
    let mut wrong = Vec::new();
    for name in ["expressions", "language"] {
        let value = json(&format!("templates/{name}.json"));
        let cases = value["cases"].as_array().unwrap();
        assert!(cases.len() > 500, "{name}");
        let mut context = value["context"].as_object().unwrap().clone();
        context.insert("messages".into(), json!([{"role": "user", "content": ""}]));
        for case in cases {
            let source = case[0].as_str().unwrap();
            let tokens = ["<|bos|>".to_owned(), "<|im_end|>".to_owned()];
            let [bos_token, eos_token] = tokens;
            let found = ChatTemplate::new(Path::new("test"), source.to_owned(), bos_token, eos_token)
                .and_then(|template| template.at(now()).render(context.clone()));
            let found = found.map_or_else(|error| Err(error.to_string()), Ok);
            if found.as_deref().ok() != case[1].as_str() {
                wrong.push(format!("{source}: {found:?}, not {}", case[1]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn blocks_and_macros_match_jinja() {
    let render = |source: &str| template(source.to_owned(), &Value::Null).render(Map::new());
    let flags = "{{ m.catch_varargs }},{{ m.catch_kwargs }},{{ m.caller }}";
    for (source, expected) in [
        (&*format!("{{% macro m(a) %}}{{{{ varargs }}}}{{% endmacro %}}{flags}"), "True,False,False"),
        (&*format!("{{% macro m() %}}{{{{ kwargs }}}}{{{{ caller() }}}}{{% endmacro %}}{flags}"), "False,True,True"),
        ("{% block x %}hi{% endblock %}{{ self.x() }}", "hihi"),
        ("{{ self.x() }}{% block x %}hi{{ 1 }}{% endblock %}", "hi1hi1"),
        ("{{ self.y is defined }}{% block x %}{% endblock %}", "False"),
        ("{% block x %}a{% endblock %}{% set y = self.x() %}{{ y ~ y }}", "aaa"),
        ("{% block x %}a{% endblock x %}{{ self['x']() }}", "aa"),
        ("{% macro m() %}{{ self.x() }}{% endmacro %}{% block x %}b{% endblock %}{{ m() }}", "bb"),
        ("{% if false %}{% block x %}b{% endblock %}{% endif %}{{ self.x() }}", "b"),
        ("{% set a = 1 %}{% block x %}{{ a }}{% set a = 2 %}{% endblock %}{{ a }}{{ self.x() }}", "111"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    for (source, expected) in [
        ("{{ lipsum() }}", "lipsum() is not supported"),
        ("{{ 'a'.encode() }}", "str.encode() is not supported"),
        ("{% block x %}{{ self.x() }}{% endblock %}", "deep"),
        ("{{ self.y() }}{% block x %}{% endblock %}", "has no attribute 'y'"),
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
    let twice = "{% block x %}a{% endblock %}{% block x %}b{% endblock %}".to_owned();
    let error = ChatTemplate::new(Path::new("test"), twice, String::new(), String::new()).err().unwrap().to_string();
    assert!(error.contains("block 'x' defined twice"), "{error}");
}

#[test]
fn continued_chat_ends_within_the_last_message() {
    let text = chatml();
    let value = json("templates/continued.json");
    let cases = value["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let source = value["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let template = template(source.to_owned(), case);
        let rendered = continued_chat::render(&template, context(case));
        match (rendered, case["expected"].as_str()) {
            (Ok(rendered), Some(expected)) => assert_eq!(rendered.text, expected, "{case}"),
            (Err(_), None) => {}
            (rendered, _) => panic!("{:?} for {case}", rendered.map(|rendered| rendered.text)),
        }
    }
    let messages = vec![Message::user("Say it."), Message::assistant("<|im_end|>")];
    let ids = text.encode(&Prompt::ContinuedChat(messages), &Map::new()).unwrap();
    let before = "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n";
    let before = text.tokenizer.encode(before, false).unwrap();
    assert_eq!(ids, [before, text.tokenizer.encode_plain("<|im_end|>").unwrap()].concat());
}

#[test]
fn template_memory_is_limited() {
    for source in [
        "{{ 'a'.ljust(1048576, 'x' * 100000000) }}",
        "{{ [1] | batch(100000000000000, 0) | list }}",
        "{{ [1] | slice(100000000000000) }}",
        "{{ [0] * 1000000000000 }}",
        "{{ ([0] * 1000000000000) | list }}",
        "{{ ([0, 0] * 9223372036854775808) | list }}",
        "{{ ([0] * 1000000000000).copy() }}",
        "{{ ([0] * 1000000000000) | tojson }}",
        "{{ [[0] * 1000000000000] | pprint }}",
        "{{ ([''] * 1000000000000) | join }}",
        "{{ 'x'.join([''] * 1000000000000) }}",
        "{{ ('\n' * 1000000) | indent(200, blank=true) }}",
        "{{ [[[0]]] | tojson(indent='x' * 100000000) }}",
        "{{ ('x' * 1000000) | replace('', 'y' * 1000000) }}",
        "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
        "{{ '{:100000000000}'.format(1) }}",
        "{{ '%100000000000d' | format(1) }}",
        "{{ ('{0}' * 1000000).format('x' * 1000000) }}",
    ] {
        let template = template(source.to_owned(), &Value::Null);
        assert!(matches!(template.render(Map::new()), Err(Error::ChatTemplate { .. })), "{source}");
    }
    let render = |source: &str| template(source.to_owned(), &Value::Null).render(Map::new()).unwrap();
    assert_eq!(render("{{ 'aba'.count('') }} {{ 'aba'.count('a') }} {{ ''.count('') }}"), "4 2 1");
    assert_eq!(render("{{ 'aaa'.replace('a', 'b', 2) }} {{ 'ab'.replace('', '-') }}"), "bba -a-b-");
    assert_eq!(render("{{ [1, 2, 3] | batch(2) | list }} {{ '%5d' | format(7) }}"), "[[1, 2], [3]]     7");
}

#[test]
fn templates_can_search_message_text() {
    let source = "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] }}{{ m.content | length }}\
                  {% if '<|im_end|>' in m.content %}found{% endif %}{% endfor %}";
    let text = TextProcessor { template: Some(template(source.to_owned(), &Value::Null)), ..chatml() };
    let ids = encode_chat(&text, &[Message::assistant("<think>a < b</think><b><|im_end|>")], &Map::new()).unwrap();
    assert_eq!(text.tokenizer.decode(&ids).unwrap(), "<|im_start|><b><|im_end|>33found");
    assert_eq!(ids.iter().filter(|id| text.tokenizer.is_special(**id)).count(), 1);
}

#[test]
fn deeply_nested_templates_compile_or_are_refused() {
    // A small stack: all that compiles them is to have one of its own.
    let new = |source: String| {
        let new = move || ChatTemplate::new(Path::new("test"), source, String::new(), String::new()).map(drop);
        std::thread::Builder::new().stack_size(512 << 10).spawn(new).unwrap().join().unwrap()
    };
    for (before, nested, after) in [
        ("{{ ", "not ", "a }}"),
        ("{{ ", "-", "a }}"),
        ("{{ a", "+1", " }}"),
        ("{{ a", ".a", " }}"),
        ("{{ a", "|e", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ a", "[1]", " }}"),
        ("{{ a", " if a else a", " }}"),
        ("{% if a %}", "{%elif a%}", "{% endif %}"),
        ("{{ ", "(", " }}"),
        ("", "{% if a %}", ""),
    ] {
        let _ = new(format!("{before}{}{after}", nested.repeat((128 << 10) / nested.len() - 8)));
    }
    let error = new(format!("{{{{ {}a{} }}}}", "(".repeat(10_000), ")".repeat(10_000))).unwrap_err().to_string();
    assert!(
        error.contains("test: chat_template is not a valid template: line 1: it is nested more than 100"),
        "{error}"
    );
    new(format!("{{{{ {}a }}}}", "not ".repeat(10_000))).unwrap();
    new("{%- if a -%} - {%- endif -%}".repeat(4000)).unwrap();
    let error = new("a".repeat((128 << 10) + 1)).unwrap_err().to_string();
    assert!(error.contains("chat_template has 131073 bytes, more than 131072"), "{error}");
}
