//! Settings of requests, and the contents of answers and errors.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use serde_json::json;
use tokenflow::{
    DiscoveredModel, Error, FinishReason, GenerateConfig, GenerateMetrics, LoadConfig, Message, ModelInfo, ModelStats,
    TextModel, Token, TokenStream, discover, testing::ScriptedModel,
};
use tokio::time::timeout;

use crate::{golden_model, golden_model_with, golden_path};

/// A model that says the prompt's last word, then ends its answer.
fn echo() -> Box<dyn TextModel> {
    let answer = |prompt: &str| prompt.split_whitespace().next_back().unwrap_or("").to_owned();
    ScriptedModel::new(answer).build().unwrap()
}

async fn read(mut stream: TokenStream) -> (Vec<Token>, FinishReason) {
    let tokens = (&mut stream).collect().await;
    assert!(stream.err().is_none(), "{:?}", stream.err());
    (tokens, stream.finish_reason().unwrap())
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| token.text.as_str()).collect()
}

#[tokio::test]
async fn min_tokens_suppresses_end_tokens() {
    let model = echo();
    let end = model.end_ids();
    for lookup in [0, 8] {
        let config = || GenerateConfig::new().prompt_lookup(lookup).max_tokens(40);
        let (usual, reason) = read(model.generate("to the sea", config())).await;
        assert_eq!((text(&usual).as_str(), reason), ("sea", FinishReason::Stop));
        for least in [1, 3, 4, 20] {
            let (tokens, reason) = read(model.generate("to the sea", config().min_tokens(least))).await;
            assert_eq!((tokens.len(), reason), (least.max(3), FinishReason::Stop), "{lookup}");
            assert!(tokens.iter().all(|token| !end.contains(&token.id)));
            assert!(text(&tokens).starts_with("sea"));
        }
        // Stop tokens are ends as well.
        let e = model.token_id("e").unwrap();
        let (tokens, _) = read(model.generate("to the sea", config().stop_tokens(vec![e]))).await;
        assert_eq!(text(&tokens), "s");
        let (tokens, _) = read(model.generate("to the sea", config().stop_tokens(vec![e]).min_tokens(2))).await;
        assert_eq!(tokens.len(), 3, "the second one is another, the third one is of the script");
        assert!(!ids(&tokens).contains(&e) && text(&tokens).ends_with('a'));
    }
}

#[tokio::test]
async fn stop_strings_match_only_after_min_tokens() {
    let model = ScriptedModel::new(|_| "one two, one two, aaaa b".into()).build().unwrap();
    let answer = async |stop: &str, least| {
        let config = GenerateConfig::new().stop(vec![stop.into()]).min_tokens(least);
        text(&read(model.generate("x", config)).await.0)
    };
    assert_eq!(answer("two", 0).await, "one ");
    assert_eq!(answer("two", 6).await, "one ");
    assert_eq!(answer("two", 7).await, "one two, one ");
    assert_eq!(answer("two", 15).await, "one two, one ");
    assert_eq!(answer("two", 16).await, "one two, one two, aaaa b");
    // One that begins before and ends after, though another one is before it.
    assert_eq!(answer("aa", 20).await, "one two, one two, a");
    assert_eq!(answer("aa", 21).await, "one two, one two, aa");
    assert_eq!(answer("aa", 22).await, "one two, one two, aaaa b");
}

#[tokio::test]
async fn ignore_eos_generates_past_end_of_text() {
    let model = echo();
    let end = model.end_ids()[0];
    for lookup in [0, 8] {
        let config = GenerateConfig::new().prompt_lookup(lookup).max_tokens(12).ignore_eos(true);
        let (tokens, reason) = read(model.generate("to the sea", config.clone())).await;
        assert_eq!((text(&tokens).as_str(), tokens.len(), reason), ("sea", 12, FinishReason::Length));
        assert!(ids(&tokens)[3..].iter().all(|id| *id == end));
        // Stop settings of the request still end it.
        let (tokens, reason) = read(model.generate("to the sea", config.clone().stop_tokens(vec![end]))).await;
        assert_eq!((tokens.len(), reason), (3, FinishReason::Stop));
        let (tokens, reason) = read(model.generate("to the sea", config.stop(vec!["ea".into()]))).await;
        assert_eq!((text(&tokens).as_str(), reason), ("s", FinishReason::Stop));
    }
}

/// On a real model, greedy and sampled, alone and in a batch, with guesses and with log-probabilities.
#[tokio::test]
async fn min_tokens_changes_only_short_answers() {
    let model = golden_model("gqa_llama3").await;
    let ends = model.end_ids();
    assert!(!ends.is_empty());
    let prompts: Vec<String> = (0..24).map(|i| format!("Hello world {i}")).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let mut ended = 0;
    for temperature in [0.0, 1.5] {
        let config = GenerateConfig::new().max_tokens(30).temperature(temperature).seed(5).logprobs(2);
        let bounded = config.clone().min_tokens(20);
        let endless = config.clone().ignore_eos(true);
        let batches = [
            model.batch_generate(&prompts, config.clone()).await.unwrap(),
            model.batch_generate(&prompts, bounded.clone()).await.unwrap(),
            model.batch_generate(&prompts, endless.clone().prompt_lookup(6)).await.unwrap(),
        ];
        for (i, prompt) in prompts.iter().enumerate() {
            let [usual, bound, unending] = [0, 1, 2].map(|of: usize| &batches[of][i].tokens);
            ended += usize::from(usual.len() < 20);
            assert!((20..=30).contains(&bound.len()) && unending.len() == 30);
            assert!(ids(bound).iter().all(|id| !ends.contains(id)));
            assert_eq!(ids(usual), ids(&unending[..usual.len()]));
            if temperature == 0.0 {
                let same = usual.len().min(20);
                assert_eq!(ids(&usual[..same]), ids(&bound[..same]));
            }
            assert!(*bound == read(model.generate(prompt, bounded.clone().prompt_lookup(4))).await.0);
            assert!(*unending == read(model.generate(prompt, endless.clone())).await.0);
        }
    }
    assert!(ended > 0, "no answer would have ended before");
}

#[tokio::test]
async fn per_prompt_seeds_vary_equal_prompts() {
    let model = golden_model("mha_tied").await;
    let config = GenerateConfig::new().max_tokens(12).temperature(1.5).seed(40);
    let run = async |config: GenerateConfig| -> Vec<Vec<u32>> {
        let results = model.batch_generate(&["Hello world"; 4], config).await.unwrap();
        results.iter().map(|result| ids(&result.tokens)).collect()
    };
    let equal = run(config.clone()).await;
    assert!(equal.iter().all(|answer| *answer == equal[0]));
    let varied = run(config.clone().seed_per_prompt(true)).await;
    for (i, answer) in varied.iter().enumerate() {
        let (alone, _) = read(model.generate("Hello world", config.clone().seed(40 + i as u64))).await;
        assert_eq!(*answer, ids(&alone), "{i}");
    }
    assert!(varied[0] == equal[0] && varied[1..].iter().all(|answer| *answer != varied[0]));
    let predict = async |config: GenerateConfig| -> Vec<u32> {
        let config = config.temperature(5.0);
        model.classify(&["Hello world"; 16], config).await.unwrap().iter().map(|result| result.token.id).collect()
    };
    let equal = predict(config.clone()).await;
    assert!(equal.iter().all(|id| *id == equal[0]));
    assert!(predict(config.seed_per_prompt(true)).await.iter().any(|id| *id != equal[0]));
}

#[tokio::test]
async fn errors_name_the_failing_prompt() {
    let model = golden_model_with("mha_tied", LoadConfig::new().context_len(16)).await;
    let long = "much too long ".repeat(20);
    let prompts = ["a", "b", &long, "c"];
    for error in [
        model.classify(&prompts, GenerateConfig::new()).await.unwrap_err(),
        model.score(&prompts, GenerateConfig::new()).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::PromptTooLong { limit: 16, prompt: Some(2), .. }), "{error:?}");
        assert!(error.to_string().starts_with("prompt 2 has "), "{error}");
    }
    let empty = model.classify(&["a", ""], GenerateConfig::new()).await.unwrap_err();
    assert!(matches!(empty, Error::InvalidConfig { field: "prompt", .. }), "{empty:?}");
    assert!(empty.to_string().contains("prompt 1"), "{empty}");
    // Errors of the whole call name no prompt.
    let error = model.classify(&prompts, GenerateConfig::new().top_p(7.0)).await.unwrap_err();
    assert!(!error.to_string().contains("prompt"), "{error}");
    let alone = model.generate(&long, GenerateConfig::new()).text().await.unwrap_err();
    assert!(matches!(alone, Error::PromptTooLong { prompt: None, .. }), "{alone:?}");
}

#[tokio::test]
async fn classify_and_score_refuse_generation_settings() {
    let model = golden_model("mha_tied").await;
    for (config, named) in [
        (GenerateConfig::new().min_tokens(3), "invalid min_tokens: 3"),
        (GenerateConfig::new().ignore_eos(true), "invalid ignore_eos: true"),
    ] {
        for error in [
            model.classify(&["a"], config.clone()).await.unwrap_err(),
            model.score(&["a"], config.clone()).await.unwrap_err(),
        ] {
            assert!(error.to_string().starts_with(named), "{error}");
        }
    }
}

#[tokio::test]
async fn token_ids_round_trip() {
    for name in ["mha_tied", "gqa_llama3", "gemma3_v5", "gguf/tiny-q8_0.gguf"] {
        let model = golden_model(name).await;
        let config = || GenerateConfig::new().max_tokens(8);
        let prompt = model.encode("Hello world").unwrap();
        assert!(model.decode(&prompt).unwrap().contains("Hello world"), "{name}");
        let by_ids = read(model.generate_ids(&prompt, config())).await;
        assert_eq!(by_ids, read(model.generate("Hello world", config())).await, "{name}");
        for id in model.end_ids() {
            let token = model.decode(&[id]).unwrap();
            assert_eq!(model.token_id(&token), Some(id), "{name}");
        }
        assert_eq!(model.token_id("no such token, surely"), None);
        let vocab_size = model.info().vocab_size as u32;
        let error = model.generate_ids(&[1, vocab_size], config()).text().await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { field: "prompt", .. }), "{error:?}");
        assert!(error.to_string().contains(&vocab_size.to_string()), "{error}");
        assert!(matches!(model.decode(&[vocab_size]), Err(Error::InvalidConfig { field: "ids", .. })));
        let error = model.generate_ids(&[], config()).text().await.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { field: "prompt", .. }), "{error:?}");
        model.close().await.unwrap();
        assert!(matches!(model.encode("a"), Err(Error::Closed)));
        assert!(matches!(model.generate_ids(&[1], config()).err(), Some(Error::Closed)));
    }
}

#[tokio::test]
async fn scripted_closure_runs_once_per_request() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let answer = move |prompt: &str| format!("{} to {prompt}", count.fetch_add(1, Ordering::SeqCst));
    let model = ScriptedModel::new(answer).build().unwrap();
    let chat = || model.chat(&[Message::user("Hi")], GenerateConfig::new()).text();
    assert_eq!(chat().await.unwrap(), "0 to user: Hi\n");
    assert_eq!(chat().await.unwrap(), "1 to user: Hi\n");
    let mut together: Vec<_> = join_all((0..20).map(|_| chat())).await.into_iter().map(Result::unwrap).collect();
    together.sort_by_key(|text| text.split(' ').next().and_then(|number| number.parse::<usize>().ok()));
    assert_eq!(together, (2..22).map(|i| format!("{i} to user: Hi\n")).collect::<Vec<_>>());
    let batch = model.batch_generate(&["Hi"; 20], GenerateConfig::new().prompt_lookup(4)).await.unwrap();
    assert!(batch.iter().all(|result| result.err.is_none() && result.text().ends_with(" to Hi")));
    assert_eq!(asked.load(Ordering::SeqCst), 42);
    model.classify(&["Hi"; 5], GenerateConfig::new()).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 47);
    model
        .score(&["Hi, whoever reads this long text of more than sixty-four letters.", "Hi"], GenerateConfig::new())
        .await
        .unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 49);
}

/// A small cache, so that requests are preempted and hit cached prefixes of others.
#[tokio::test]
async fn equal_scripted_requests_keep_their_own_answers() {
    let mut asked = 0;
    let answer = move |_: &str| {
        asked += 1;
        format!("{} is the number of this answer, {asked} it is, {asked}.", "the same at first".repeat(3))
    };
    let block_bytes = 64;
    let config = LoadConfig::new().kv_cache_bytes(24 * block_bytes).context_len(192);
    let model = ScriptedModel::new(answer).load_config(config).build().unwrap();
    for lookup in [0, 8] {
        let before = model.stats().preemptions;
        let config = GenerateConfig::new().prompt_lookup(lookup);
        let results = model.batch_generate(&["Which one are you?"; 30], config).await.unwrap();
        let mut numbers: Vec<usize> = results
            .iter()
            .map(|result| {
                let text = result.text();
                let number = text.rsplit(' ').next().unwrap().trim_end_matches('.').to_owned();
                assert!(text.ends_with(&format!("answer, {number} it is, {number}.")), "{text}");
                number.parse().unwrap()
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 30);
        assert!(model.stats().preemptions > before);
    }
}

#[tokio::test]
async fn long_scripted_answer_takes_linear_time() {
    let model = ScriptedModel::new(|prompt| prompt.repeat(2)).build().unwrap();
    let prompt = "All work and no play. ".repeat(900);
    let config = GenerateConfig::new().max_tokens(usize::MAX);
    let answer = timeout(Duration::from_secs(60), model.generate(&prompt, config).text()).await;
    assert_eq!(answer.expect("tokens take the same time each").unwrap(), prompt.repeat(2));
}

#[tokio::test]
async fn scripted_model_takes_templates_and_token_ids() {
    let config = LoadConfig::new().chat_template("{{ messages[0].content }}!");
    let model = ScriptedModel::new(|prompt| format!("<{prompt}>")).load_config(config).build().unwrap();
    let chat = model.chat(&[Message::user("Hi")], GenerateConfig::new()).text();
    assert_eq!(chat.await.unwrap(), "<Hi!>");
    let letters = [model.token_id("H").unwrap(), model.token_id("i").unwrap()];
    assert_eq!(model.generate_ids(&letters, GenerateConfig::new()).text().await.unwrap(), "<Hi>");
}

#[tokio::test]
async fn scripted_model_reports_logprobs() {
    let model = ScriptedModel::new(|prompt| format!("{prompt} it is")).build().unwrap();
    let logprobs = async |text: &str| -> Vec<f32> {
        let tokens = model.score(&[text], GenerateConfig::new()).await.unwrap().remove(0);
        tokens.iter().filter_map(|token| Some(token.logprobs.as_ref()?.logprob)).collect()
    };
    let said = logprobs("Late<|reply|>Late it is<|end|>").await;
    let (prompt, answer) = (&said[..4], &said[4..]);
    assert!(prompt.iter().all(|logprob| (logprob + 258f32.ln()).abs() < 1e-3), "{prompt:?}");
    assert!(answer[..11].iter().all(|logprob| *logprob > -1e-3), "{answer:?}");
    let unsaid = logprobs("Late<|reply|>No").await;
    assert!(unsaid[4..6].iter().all(|logprob| *logprob < -50.0), "{unsaid:?}");
}

#[tokio::test]
async fn tokens_metrics_and_stats_serialize_as_json() {
    let model = echo();
    let mut stream = model.generate("to the sea", GenerateConfig::new().logprobs(1));
    let tokens: Vec<Token> = (&mut stream).collect().await;
    let written = serde_json::to_value(&tokens[0]).unwrap();
    assert_eq!(written["text"], "s");
    assert_eq!(written["logprobs"]["top"][0][0], tokens[0].id);
    assert_eq!(serde_json::from_value::<Token>(written).unwrap(), tokens[0]);
    assert_eq!(serde_json::from_value::<Token>(json!({"id": 1, "text": "a"})).unwrap(), Token::new(1, "a"));
    assert_eq!(serde_json::to_value(stream.finish_reason()).unwrap(), "stop");
    let metrics = serde_json::to_value(stream.metrics()).unwrap();
    assert_eq!((&metrics["prompt_tokens"], &metrics["generated_tokens"]), (&json!(11), &json!(3)));
    assert_eq!(metrics["total_duration"], stream.metrics().total_duration.as_secs_f64());
    assert_eq!(serde_json::from_value::<GenerateMetrics>(metrics).unwrap(), stream.metrics());
    let stats = model.stats();
    let written = serde_json::to_value(stats).unwrap();
    assert_eq!(written["pass_duration"], stats.pass_duration.as_secs_f64());
    assert_eq!(serde_json::from_value::<ModelStats>(written).unwrap(), stats);
    assert!(serde_json::from_value::<ModelStats>(json!({"pass_duration": -1.0})).is_err());
    let info = serde_json::to_value(model.info()).unwrap();
    assert_eq!((&info["architecture"], &info["vocab_size"]), (&json!("scripted"), &json!(258)));
    assert_eq!(serde_json::from_value::<ModelInfo>(info).unwrap(), model.info());
    let batch = model.batch_generate(&["by the sea", &"x".repeat(1 << 17)], GenerateConfig::new()).await.unwrap();
    let written = serde_json::to_value(&batch).unwrap();
    assert_eq!((&written[0]["tokens"][1]["text"], &written[0]["err"]), (&json!("e"), &json!(null)));
    assert_eq!(written[1]["err"], batch[1].err.as_ref().unwrap().to_string());
    let predicted = model.classify(&["sea"], GenerateConfig::new().return_logits(true)).await.unwrap().remove(0);
    let written = serde_json::to_value(&predicted).unwrap();
    assert_eq!(written["token"]["text"], "s");
    assert_eq!(written["logits"].as_array().unwrap().len(), 258);
    let found = discover(golden_path("gguf")).next().unwrap();
    let written = serde_json::to_value(&found).unwrap();
    assert_eq!((&written["format"], &written["num_files"]), (&json!("gguf"), &json!(1)));
    assert_eq!(serde_json::from_value::<DiscoveredModel>(written).unwrap(), found);
}
