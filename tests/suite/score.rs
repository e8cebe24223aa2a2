//! How likely the tokens of a text are.

use futures::future::join_all;
use tokenflow::{Error, GenerateConfig, LoadConfig, TextModel, Token, load_model};

use crate::{golden_model, golden_model_with, models};

const TEXT: &str = "Once there was a fox that lived near the sea; in 1984 it jumped over the lazy dog and the sun.";

async fn score(model: &dyn TextModel, text: &str) -> Vec<Token> {
    model.score(&[text], GenerateConfig::new().logprobs(3)).await.unwrap().remove(0)
}

#[tokio::test]
async fn score_matches_classify_of_every_prefix() {
    for name in ["gqa_llama3", "gemma2_v5", "qwen3_moe_v5"] {
        let model = golden_model(name).await;
        let encode = |text: &str| model.as_trainable().unwrap().encode(text).unwrap();
        let (ids, scored) = (encode(TEXT), score(&*model, TEXT).await);
        assert_eq!(scored.iter().map(|token| token.id).collect::<Vec<_>>(), ids, "{name}");
        assert_eq!(scored[0].logprobs, None, "{name}");
        let metrics = model.metrics();
        assert_eq!((metrics.prompt_tokens, metrics.generated_tokens), (ids.len(), 0), "{name}");
        let mut compared = 0;
        for beginning in (1..TEXT.len()).map(|end| &TEXT[..end]) {
            let begun = encode(beginning);
            let Some(then) = scored.get(begun.len()).filter(|_| ids.starts_with(&begun)) else { continue };
            let config = GenerateConfig::new().logit_bias([(then.id, 1e9)].into()).logprobs(3);
            let predicted = model.classify(&[beginning], config).await.unwrap().remove(0).token;
            assert_eq!((predicted.id, &predicted.logprobs), (then.id, &then.logprobs), "{name}: {beginning:?}");
            compared += 1;
        }
        assert!(compared > 8, "{name}: {compared}");
    }
}

/// With a small cache, beside streams and other scores, and with cache hits.
#[tokio::test]
async fn score_is_batch_invariant() {
    let text = |i: usize| format!("{i} {}", TEXT.repeat(1 + i % 3));
    let alone = golden_model("gqa_llama3").await;
    let bytes_per_token = alone.stats().kv_capacity_bytes / alone.stats().kv_capacity_tokens;
    let tight = LoadConfig::new().context_len(256).kv_cache_bytes(256 * bytes_per_token);
    let model = golden_model_with("gqa_llama3", tight).await;
    let texts: Vec<String> = (0..12).map(|i| text(i / 2)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let streams = (0..12).map(|i| model.generate(texts[i], GenerateConfig::new().max_tokens(40)).text());
    let (scored, answers) = tokio::join!(model.score(&texts, GenerateConfig::new().logprobs(3)), join_all(streams));
    assert!(model.stats().preemptions > 0);
    for (scored, text) in scored.unwrap().into_iter().zip(&texts) {
        assert_eq!(scored, score(&*alone, text).await);
    }
    for (answer, text) in answers.into_iter().zip(&texts) {
        assert_eq!(answer.unwrap(), alone.generate(text, GenerateConfig::new().max_tokens(40)).text().await.unwrap());
    }
}

#[tokio::test]
async fn token_texts_concatenate_to_the_text() {
    let model = load_model(models::smollm2_gguf().await.unwrap(), LoadConfig::new()).await.unwrap();
    for text in ["x", "Schöne Grüße, 世界! Привет 👩‍👩‍👧 and 🚀", TEXT] {
        let scored = score(&*model, text).await;
        assert_eq!(scored.iter().map(|token| token.text.as_str()).collect::<String>(), text);
        for token in &scored[1..] {
            let found = token.logprobs.as_ref().unwrap();
            assert!(found.logprob <= found.top[0].1 && found.top.len() == 3);
        }
    }
    let [paris, london] = ["The capital of France is Paris", "The capital of France is London"];
    let last = |scored: Vec<Token>| scored.last().unwrap().logprobs.as_ref().unwrap().logprob;
    assert!(last(score(&*model, paris).await) > last(score(&*model, london).await) + 1.0);
}

#[tokio::test]
async fn invalid_score_requests_are_refused() {
    let model = golden_model_with("gqa_llama3", LoadConfig::new().context_len(8)).await;
    let error = model.score(&["a", TEXT], GenerateConfig::new()).await.unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { limit: 8, .. }), "{error}");
    assert!(model.err().is_some());
    for (config, named) in [
        (GenerateConfig::new().return_logits(true), "invalid return_logits: true"),
        (GenerateConfig::new().stop(vec!["x".into()]), r#"invalid stop: ["x"]"#),
        (GenerateConfig::new().stop_tokens(vec![7]), "invalid stop_tokens: [7]"),
    ] {
        let error = model.score(&["a"], config).await.unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
        assert_eq!(model.err().unwrap().to_string(), error);
    }
    assert!(model.score(&[], GenerateConfig::new()).await.unwrap().is_empty());
    model.close().await.unwrap();
    assert!(matches!(model.score(&["a"], GenerateConfig::new()).await, Err(Error::Closed)));
}
