//! Files of strangers: each is loaded and run in a process of its own, which must end by itself, in bounded time and
//! memory, with an answer or an error that names the file.

mod gguf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokenflow::{GenerateConfig, LoadConfig, Message, load_model};

use crate::{TempDir, golden_path};

/// Names the model directory of a child process.
const MODEL: &str = "TOKENFLOW_MODEL_UNDER_TEST";
/// Stands between the outcomes that a child reports.
const SEPARATOR: &str = " <;> ";
/// Limits of a child process, many times the needs of the healthy model.
const MAX_MEMORY_BYTES: u64 = 1 << 30;
const MAX_DURATION: Duration = Duration::from_secs(10);

/// How a child ended.
struct Outcome {
    /// Errors of loading or of the two requests, one a line.
    report: String,
    peak_bytes: u64,
    duration: Duration,
}

/// The child: loads the model that the environment names, or a healthy one, and runs a prompt and a chat.
#[tokio::test]
async fn load_and_run_in_a_child_process() {
    let under_test = env::var_os(MODEL).map(PathBuf::from);
    let path = under_test.clone().unwrap_or_else(|| golden_path("mha_tied"));
    let report = run(&path).await;
    println!("report: {}", report.join(SEPARATOR).replace('\n', " "));
    if under_test.is_none() {
        assert_eq!(report, ["answered", "answered"]);
    }
}

async fn run(path: &Path) -> Vec<String> {
    let model = match load_model(path, LoadConfig::new().threads(1)).await {
        Ok(model) => model,
        Err(error) => return vec![described(&error)],
    };
    let adapter = path.join("adapter");
    if adapter.exists()
        && let Err(error) = model.load_adapter("adapter", &adapter).await
    {
        return vec![described(&error)];
    }
    let text = format!("{}{}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1234567890", " ".repeat(200), "ab".repeat(20));
    let config = GenerateConfig::new().max_tokens(2);
    let mut report = Vec::new();
    for stream in [model.generate(&text, config.clone()), model.chat(&[Message::user(text)], config)] {
        report.push(stream.text().await.map_or_else(|error| described(&error), |_| "answered".to_owned()));
    }
    model.close().await.unwrap();
    report
}

/// An error with its causes.
fn described(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs a model directory in a child process.
fn outcome(dir: &Path) -> Outcome {
    let started = Instant::now();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "hostile::load_and_run_in_a_child_process", "--nocapture"])
        .env(MODEL, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_bytes = 0;
    while child.try_wait().unwrap().is_none() {
        peak_bytes = peak_bytes.max(peak_of(&status_file));
        if started.elapsed() > MAX_DURATION || peak_bytes > MAX_MEMORY_BYTES {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let duration = started.elapsed();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let report = stdout.split_once("report: ").and_then(|(_, rest)| rest.lines().next());
    let report = report.map_or_else(|| format!("no report, {}", output.status), str::to_owned);
    Outcome { report, peak_bytes, duration }
}

/// The most memory a process had resident so far.
fn peak_of(status_file: &str) -> u64 {
    let status = fs::read_to_string(status_file).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Runs a model with one file replaced, and returns what is wrong with how it ended: it must answer, or name one of
/// `names`.
fn fault(name: &str, dir: &TempDir, names: &[&str]) -> Option<String> {
    fault_of(name, &dir.0, names)
}

fn fault_of(name: &str, model: &Path, names: &[&str]) -> Option<String> {
    let Outcome { report, peak_bytes, duration } = outcome(model);
    let parts = report.split(SEPARATOR);
    let right = parts.into_iter().all(|part| part == "answered" || names.iter().any(|name| part.contains(name)));
    let shown: String = report.chars().take(300).collect();
    (!right || duration > MAX_DURATION || peak_bytes > MAX_MEMORY_BYTES)
        .then(|| format!("{name}: {shown} ({duration:.1?}, {} MB)", peak_bytes >> 20))
}

fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// A copy of the healthy model whose tokenizer.json is changed.
fn with_tokenizer(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = TempDir::copy_of("mha_tied", "tokenizer");
    let path = dir.0.join("tokenizer.json");
    let mut tokenizer = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    fs::write(path, tokenizer.to_string()).unwrap();
    dir
}

fn with_template(template: &str) -> TempDir {
    let dir = TempDir::copy_of("mha_tied", "template");
    fs::write(dir.0.join("chat_template.jinja"), template).unwrap();
    dir
}

/// Patterns that overflow stacks, backtrack without end, or take gigabytes to be compiled.
fn patterns() -> Vec<(&'static str, String)> {
    vec![
        ("absent operators in each other", format!("{}a{}", "(?~".repeat(1000), ")".repeat(1000))),
        ("absent operators, not closed", "(?~".repeat(5000)),
        ("sets in each other", format!("{}a{}", "[".repeat(20_000), "]".repeat(20_000))),
        ("groups in each other", format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000))),
        ("groups in a row", "(a)".repeat(10_000)),
        ("look-aheads in each other", format!("{}a{}", "(?=".repeat(3000), ")".repeat(3000))),
        ("alternatives of overlapping texts", "(?:a|aa){22}b".to_owned()),
        ("alternatives in a loop", "(?:a|b)*c".to_owned()),
        ("loops in each other", "(a*)*b".to_owned()),
        ("loops in each other, with a back-reference", r"(a*)*\1b".to_owned()),
        ("classes of Unicode in a row", r"\p{L}".repeat(50_000)),
        ("counts in each other", "(?:(?:(?:a{1000}){1000}){1000}){1000}".to_owned()),
        ("a class many times", r"\p{L}{100000}".to_owned()),
        ("look-behinds", r"(?<=a|aa)".repeat(2000)),
        ("conditions", "(?(1)a|b)".repeat(3000)),
        ("a pattern of a megabyte", "a|".repeat(500_000)),
    ]
}

#[test]
fn tokenizer_patterns_are_bounded() {
    let mut faults = Vec::new();
    for (name, pattern) in patterns() {
        let regex = json!({"Regex": pattern});
        let split = json!({"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": false});
        let replace = json!({"type": "Replace", "pattern": regex, "content": "b"});
        let dir = with_tokenizer(|tokenizer| tokenizer["pre_tokenizer"] = split);
        faults.extend(fault(&format!("pre_tokenizer, {name}"), &dir, &["tokenizer.json"]));
        let dir = with_tokenizer(|tokenizer| tokenizer["normalizer"] = replace);
        faults.extend(fault(&format!("normalizer, {name}"), &dir, &["tokenizer.json"]));
    }
    assert_none(faults);
}

#[test]
fn adapter_patterns_are_bounded() {
    let mut faults = Vec::new();
    let patterns = patterns().into_iter().map(|(name, pattern)| (name, json!({pattern: 4})));
    let many: Value =
        (0..800).map(|at| (format!(r"\p{{L}}+{at}.*\w{{1,100}}"), json!(4))).collect::<serde_json::Map<_, _>>().into();
    for (name, patterns) in patterns.chain([("800 patterns", many)]) {
        let dir = TempDir::copy_of("qwen3", "adapter");
        let adapter = dir.0.join("adapter");
        fs::create_dir(&adapter).unwrap();
        fs::copy(
            golden_path("adapters/all_linear/adapter_model.safetensors"),
            adapter.join("adapter_model.safetensors"),
        )
        .unwrap();
        let path = golden_path("adapters/all_linear/adapter_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        config["rank_pattern"] = patterns;
        fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        faults.extend(fault(&format!("rank_pattern, {name}"), &dir, &["adapter_config.json", "no chat template"]));
    }
    assert_none(faults);
}

/// Changes that make a healthy tokenizer.json hostile.
type Change = Box<dyn FnOnce(&mut Value)>;

#[test]
fn tokenizers_are_bounded() {
    let words = |count: usize| (0..count).map(|at| (format!("t{at}"), json!(at))).collect::<serde_json::Map<_, _>>();
    let cases: Vec<(&str, Change)> = vec![
        (
            "WordPiece of words without end",
            Box::new(move |tokenizer| {
                let mut vocab = words(300);
                vocab.insert("[UNK]".into(), json!(300));
                tokenizer["pre_tokenizer"] = Value::Null;
                tokenizer["model"] = json!({"type": "WordPiece", "unk_token": "[UNK]",
                    "continuing_subword_prefix": "##", "max_input_chars_per_word": 1_000_000_000, "vocab": vocab});
            }),
        ),
        (
            "Unigram of long runs",
            Box::new(|tokenizer| {
                let vocab: Vec<_> = (1..300).map(|len| json!(["a".repeat(len), -1.0])).collect();
                tokenizer["pre_tokenizer"] = Value::Null;
                tokenizer["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab});
            }),
        ),
        (
            "tokens that take spaces along",
            Box::new(|tokenizer| {
                tokenizer["added_tokens"][3]["lstrip"] = json!(true);
                tokenizer["added_tokens"][3]["rstrip"] = json!(true);
                tokenizer["added_tokens"][3]["content"] = json!(" ");
            }),
        ),
        (
            "a normalizer that grows",
            Box::new(|tokenizer| {
                let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(60)});
                tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [step, step]});
            }),
        ),
        (
            "a prefix that grows",
            Box::new(|tokenizer| tokenizer["normalizer"] = json!({"type": "Prepend", "prepend": "a".repeat(1 << 22)})),
        ),
        (
            "a huge control token",
            Box::new(|tokenizer| tokenizer["added_tokens"][1]["content"] = json!("<".repeat(8 << 20))),
        ),
        (
            "steps in each other",
            Box::new(|tokenizer| {
                let nested = |step, _| json!({"type": "Sequence", "normalizers": [step]});
                tokenizer["normalizer"] = (0..100).fold(json!({"type": "NFC"}), nested);
            }),
        ),
        (
            "a charsmap of nothing",
            Box::new(|tokenizer| {
                tokenizer["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "////fwAAAAA="});
            }),
        ),
    ];
    let mut faults = Vec::new();
    for (name, change) in cases {
        faults.extend(fault(
            name,
            &with_tokenizer(change),
            &["tokenizer.json", "vocabulary", "longer", "chat template"],
        ));
    }
    assert_none(faults);
}

#[test]
fn deeply_nested_files_are_errors() {
    let mut faults = Vec::new();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        for deep in ["[", "{\"a\":"] {
            let dir = TempDir::copy_of("mha_tied", "deep");
            fs::write(dir.0.join(file), deep.repeat(1_000_000)).unwrap();
            faults.extend(fault(&format!("{file} of {deep}"), &dir, &[file]));
        }
    }
    assert_none(faults);
}

/// Expressions and statements that double, fold, nest, or walk without end.
fn templates() -> Vec<(&'static str, String)> {
    let loops = |body: &str| format!("{{% set n = namespace(x='ab') %}}{{% for i in range(60) %}}{body}{{% endfor %}}");
    let repeat = |setup: &str, body: &str| format!("{setup}{{% for i in range(100000) %}}{body}{{% endfor %}}");
    let repeated = |text: &str| text.repeat(100_000);
    let text = "{% set x = 'a' * 1000000 %}";
    let macro_m = "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}";
    let filter_block = "{% set y %}{% filter upper %}{{ n.x }}{{ n.x }}{% endfilter %}{% endset %}{% set n.x = y %}";
    vec![
        ("a list, repeated", "{{ [0] * 10**12 }}".into()),
        ("in a list, repeated", "{{ 1 in [0] * 10**12 }}".into()),
        ("a list, repeated and reversed", "{{ ([0] * 10**12)[::-1] }}".into()),
        ("a folded constant", "{% if false %}{{ [0] * 1000000000000 }}{% endif %}{{ [0] * 100000000 }}".into()),
        ("a text, repeated", "{{ 'a' * 10**12 }}".into()),
        ("a power", "{{ 10 ** 10 ** 10 }}".into()),
        ("doubling by ~", loops("{% set n.x = n.x ~ n.x %}")),
        ("doubling by +", loops("{% set n.x = n.x + n.x %}")),
        ("doubling by a list", loops("{% set n.x = [n.x, n.x] %}") + "{{ n.x | tojson }}"),
        ("doubling by a list, joined", loops("{% set n.x = [n.x, n.x] | join %}")),
        ("doubling by %", loops("{% set n.x = '%s%s' % (n.x, n.x) %}")),
        ("doubling by replace", loops("{% set n.x = n.x | replace('a', n.x) %}")),
        ("doubling by format", loops("{% set n.x = '{0}{0}'.format(n.x) %}")),
        ("doubling by a capture", loops("{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}")),
        ("doubling by a macro", macro_m.to_owned() + &loops("{% set n.x = m(n.x) %}")),
        ("doubling by a filter block", loops(filter_block)),
        ("work in a loop", repeat(text, "{% set y = x | upper | length %}")),
        ("searches in a loop", repeat(text, "{% set y = x.count('b') + x.find('c') %}")),
        (
            "comparisons in a loop",
            repeat(&format!("{text}{}", text.replace('x', "z")), "{% set y = x == z or x in z %}"),
        ),
        ("sorting in a loop", repeat("{% set x = range(100000) | list %}", "{% set y = x | sort | list %}")),
        ("loops in loops", repeat("", &repeat("", &repeat("", "")))),
        ("a long range", "{{ range(10**12) | list | length }}".into()),
        ("a value in itself", "{% set n = namespace() %}{% set n.x = [n] %}{{ n }}{{ n == n }}".into()),
        ("a value in itself, as JSON", "{% set n = namespace() %}{% set n.x = [n] %}{{ n.x | tojson }}".into()),
        ("a value in deep lists", repeat("{% set n = namespace(x=[]) %}", "{% set n.x = [n.x] %}") + "{{ n.x }}"),
        ("a macro in itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into()),
        ("a loop in itself", "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".into()),
        ("parentheses", format!("{{{{ {}1{} }}}}", repeated("("), repeated(")"))),
        ("lists", format!("{{{{ {}{} }}}}", repeated("["), repeated("]"))),
        ("ifs", repeated("{% if 1 %}") + &repeated("{% endif %}")),
        ("attributes", format!("{{{{ x{} }}}}", repeated(".a"))),
        ("subscripts", format!("{{{{ x{}{} }}}}", repeated("[x"), repeated("]"))),
        ("not", format!("{{{{ {} x }}}}", repeated("not "))),
        ("minus", format!("{{{{ {}1 }}}}", repeated("-"))),
        ("additions", format!("{{{{ 1{} }}}}", repeated("+1"))),
        ("powers", format!("{{{{ 1{} }}}}", repeated("**1"))),
        ("filters", format!("{{{{ x{} }}}}", repeated("|upper"))),
        ("conditions", format!("{{{{ {} }}}}", repeated("1 if x else "))),
        ("an empty text, reversed", "{{ ''[::-1] }}{{ 0 is divisibleby(0) }}".into()),
        ("a step of nothing", "{{ [1, 2][::0] }}{{ range(1, 2, 0) }}{{ 1 // 0 }}{{ 1 % 0 }}".into()),
        ("padding", "{{ '%999999999d' % 1 }}{{ 'a'.center(10**10) }}".into()),
        ("padding of lines", "{{ 'a'.ljust(10**10) }}{{ 'a' | indent(10**10) }}".into()),
        ("joined with much", "{% set x = 'a' * 1000000 %}{{ x.join(['b'] * 100000) }}".into()),
        ("escapes", "{{ ('<' * 10000000) | escape | escape | escape | length }}".into()),
    ]
}

#[test]
fn templates_are_bounded() {
    let mut faults = Vec::new();
    for (name, template) in templates() {
        faults.extend(fault(name, &with_template(&template), &["template"]));
    }
    assert_none(faults);
}
