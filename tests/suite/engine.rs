//! Streams: running, pausing, stopping and ending.

use std::time::Duration;

use futures::{StreamExt, future::join_all};
use tokenflow::{Error, FinishReason, GenerateConfig, LoadConfig, Message, TextModel, Token};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{golden_model, golden_model_with, read_json, scripted::until};

const PROMPT: &str = "Hello world";

async fn model() -> Box<dyn TextModel> {
    golden_model("mha_tied").await
}

/// A config whose answer runs to the end of the context.
async fn endless(model: &dyn TextModel) -> GenerateConfig {
    let config = (0..50).map(|seed| GenerateConfig::new().max_tokens(100_000).temperature(2.0).seed(seed));
    for config in config {
        let mut stream = model.generate(PROMPT, config.clone());
        while stream.next().await.is_some() {}
        if stream.finish_reason() == Some(FinishReason::Length) {
            return config;
        }
    }
    panic!("the model always stops");
}

#[tokio::test]
async fn stream_pieces_concatenate_to_the_text() {
    let model = model().await;
    for seed in 0..20 {
        let config = || GenerateConfig::new().max_tokens(60).temperature(1.5).seed(seed);
        let tokens: Vec<Token> = model.generate(PROMPT, config()).collect().await;
        let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(text, model.generate(PROMPT, config()).text().await.unwrap());
        assert_eq!(model.metrics().generated_tokens, tokens.len());
    }
}

#[tokio::test]
async fn seed_determines_the_tokens() {
    let model = model().await;
    let run = async |seed| {
        model.generate(PROMPT, GenerateConfig::new().max_tokens(40).temperature(1.5).seed(seed)).text().await.unwrap()
    };
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}

#[tokio::test]
async fn stop_string_ends_the_answer_and_is_removed() {
    let model = model().await;
    let config = endless(&*model).await.max_tokens(60);
    let whole = model.generate(PROMPT, config.clone()).text().await.unwrap();
    let chars: Vec<char> = whole.chars().collect();
    for at in (8..chars.len() - 4).step_by(5) {
        let stop: String = chars[at..at + 4].iter().collect();
        let expected = &whole[..whole.find(&stop).unwrap()];
        let mut stream = model.generate(PROMPT, config.clone().stop(vec!["never there".into(), stop.clone()]));
        let mut text = String::new();
        while let Some(token) = stream.next().await {
            text += &token.text;
        }
        assert_eq!(text, expected, "stopped by {stop:?}");
        assert_eq!(stream.finish_reason(), Some(FinishReason::Stop));
    }
}

#[tokio::test]
async fn stop_token_ends_the_answer_and_is_removed() {
    let model = model().await;
    let tokens: Vec<Token> = model.generate(PROMPT, GenerateConfig::new().max_tokens(20)).collect().await;
    let stop = tokens[5].id;
    let first = tokens.iter().position(|token| token.id == stop).unwrap();
    let mut stream = model.generate(PROMPT, GenerateConfig::new().max_tokens(20).stop_tokens(vec![stop]));
    let mut stopped = Vec::new();
    while let Some(token) = stream.next().await {
        stopped.push(token.id);
    }
    assert_eq!(stopped, tokens[..first].iter().map(|token| token.id).collect::<Vec<_>>());
    assert_eq!(stream.finish_reason(), Some(FinishReason::Stop));
}

#[tokio::test]
async fn max_tokens_and_full_context_finish_with_length() {
    let model = golden_model_with("mha_tied", LoadConfig::new().context_len(32)).await;
    assert_eq!(model.info().context_len, 32);
    let mut stream = model.generate(PROMPT, GenerateConfig::new().max_tokens(3));
    assert_eq!((&mut stream).count().await, 3);
    assert_eq!(stream.finish_reason(), Some(FinishReason::Length));
    let config = endless(&*model).await;
    let mut stream = model.generate(PROMPT, config);
    let count = (&mut stream).count().await;
    assert_eq!(count + stream.metrics().prompt_tokens, 32);
    let long = PROMPT.repeat(40);
    let mut stream = model.generate(&long, GenerateConfig::new());
    assert!(stream.next().await.is_none());
    assert!(matches!(stream.err(), Some(Error::PromptTooLong { limit: 32, tokens, .. }) if *tokens > 32));
}

#[tokio::test]
async fn cancel_ends_the_stream() {
    let model = model().await;
    let config = endless(&*model).await;
    // By the stream's own token, and by the one in the config.
    let outer = CancellationToken::new();
    for own in [true, false] {
        let mut stream = model.generate(PROMPT, config.clone().cancellation(outer.clone()));
        stream.next().await.unwrap();
        if own {
            stream.cancellation_token().cancel()
        } else {
            outer.cancel()
        }
        while stream.next().await.is_some() {}
        assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
        assert!(matches!(stream.err(), Some(Error::Cancelled)));
        assert_eq!(outer.is_cancelled(), !own, "a stream's own token cancels that stream only");
    }
    let mut stream = model.generate(PROMPT, config.cancellation(outer));
    assert!(stream.next().await.is_none());
    assert_eq!(stream.finish_reason(), Some(FinishReason::Cancelled));
}

#[tokio::test]
async fn cancel_ends_an_unread_stream() {
    let model = golden_model_with("mha_tied", LoadConfig::new().stream_buffer(1)).await;
    let config = endless(&*model).await;
    let before = model.stats();
    let stream = model.generate(PROMPT, config);
    // The buffer is full, and the stream paused.
    until(&*model, |stats| stats.sampled_tokens > before.sampled_tokens).await;
    stream.cancellation_token().cancel();
    until(&*model, |_| matches!(model.err(), Some(Error::Cancelled))).await;
    assert_eq!(model.stats().cancelled, before.cancelled + 1);
    drop(stream);
}

#[tokio::test]
async fn dropped_streams_free_their_memory() {
    let model = model().await;
    let config = endless(&*model).await;
    let idle = model.metrics().active_memory_bytes;
    let mut streams: Vec<_> = (0..16).map(|_| model.generate(PROMPT, config.clone())).collect();
    join_all(streams.iter_mut().map(|stream| stream.next())).await;
    drop(streams);
    model.generate(PROMPT, GenerateConfig::new().max_tokens(1)).text().await.unwrap();
    timeout(Duration::from_secs(10), async {
        // `metrics` is of the operation that ended last, which may be a dropped stream.
        while model.metrics().active_memory_bytes > idle {
            model.generate(PROMPT, GenerateConfig::new().max_tokens(1)).text().await.unwrap();
        }
    })
    .await
    .expect("all blocks come back");
}

#[tokio::test]
async fn slow_reader_pauses_only_its_own_stream() {
    // Even where only one sequence runs at a time.
    let model = golden_model_with("mha_tied", LoadConfig::new().stream_buffer(2).parallel_slots(1)).await;
    let config = endless(&*model).await.max_tokens(50);
    let expected = model.generate(PROMPT, config.clone()).text().await.unwrap();
    let mut slow = model.generate(PROMPT, config.clone());
    let first = slow.next().await.unwrap();
    for _ in 0..3 {
        assert_eq!(model.generate(PROMPT, config.clone()).text().await.unwrap(), expected);
    }
    let rest: Vec<Token> = slow.collect().await;
    let text: String = std::iter::once(&first).chain(&rest).map(|token| token.text.as_str()).collect();
    assert_eq!(text, expected);
}

#[tokio::test]
async fn long_prompt_does_not_block_other_requests() {
    // Most of it is tokenized, as its tokens are few.
    let model = golden_model_with("mha_tied", LoadConfig::new()).await;
    let long = "several words and a number such as 12345\n".repeat(100_000);
    let longs: Vec<_> = (0..4).map(|_| model.generate(&long, GenerateConfig::new())).collect();
    let answer = timeout(Duration::from_secs(5), model.generate("Hello", GenerateConfig::new().max_tokens(2)).text());
    assert!(answer.await.is_ok(), "it does not wait for them");
    for long in longs {
        assert!(matches!(long.text().await, Err(Error::PromptTooLong { .. })));
    }
}

#[tokio::test]
async fn full_queue_refuses_at_once() {
    let model =
        golden_model_with("mha_tied", LoadConfig::new().queue_limit(2).parallel_slots(1).stream_buffer(1)).await;
    let config = endless(&*model).await;
    let streams: Vec<_> = (0..5000).map(|_| model.generate(PROMPT, config.clone())).collect();
    let refused: Vec<_> = streams.iter().filter(|stream| stream.finish_reason().is_some()).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|stream| matches!(stream.err(), Some(Error::Overloaded { limit: 2 }))));
    drop(streams);
    // A batch waits for its turn instead, however long it is.
    let results = model.batch_generate(&[PROMPT; 20], GenerateConfig::new().max_tokens(2)).await.unwrap();
    assert!(results.iter().all(|result| result.err.is_none() && result.tokens.len() == 2));
}

#[tokio::test]
async fn preemption_keeps_answers() {
    let roomy = model().await;
    let prompts: Vec<String> = (0..6).map(|i| format!("{PROMPT} {i}")).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let config = || GenerateConfig::new().max_tokens(40).temperature(1.0).seed(3);
    let expected = roomy.batch_generate(&prompts, config()).await.unwrap();
    // Four blocks of 16 tokens hold one sequence and a bit.
    let config_json = read_json("mha_tied/config.json");
    let size = |key: &str| config_json[key].as_u64().unwrap() as usize;
    let block = 2 * size("num_hidden_layers") * size("hidden_size") * 16 * size_of::<f32>();
    let tight = golden_model_with("mha_tied", LoadConfig::new().kv_cache_bytes(4 * block)).await;
    assert_eq!(tight.info().context_len, 64);
    let ours = tight.batch_generate(&prompts, config()).await.unwrap();
    for (ours, expected) in ours.iter().zip(&expected) {
        assert!(ours.err.is_none());
        assert_eq!(ours.tokens, expected.tokens);
    }
}

#[tokio::test]
async fn close_ends_streams_and_later_calls() {
    let model = model().await;
    let config = endless(&*model).await;
    let mut stream = model.generate(PROMPT, config);
    stream.next().await.unwrap();
    model.close().await.unwrap();
    while stream.next().await.is_some() {}
    assert!(matches!(stream.err(), Some(Error::Closed)));
    model.close().await.unwrap();
    assert!(matches!(model.generate(PROMPT, GenerateConfig::new()).err(), Some(Error::Closed)));
    assert!(matches!(model.chat(&[Message::user("a")], GenerateConfig::new()).err(), Some(Error::Closed)));
    assert!(matches!(model.classify(&[PROMPT], GenerateConfig::new()).await, Err(Error::Closed)));
    assert!(matches!(model.batch_generate(&[PROMPT], GenerateConfig::new()).await, Err(Error::Closed)));
    assert!(matches!(model.err(), Some(Error::Closed)));
}

#[tokio::test]
async fn dropped_model_ends_its_streams() {
    let model = model().await;
    let config = endless(&*model).await;
    let mut stream = model.generate(PROMPT, config);
    stream.next().await.unwrap();
    drop(model);
    while stream.next().await.is_some() {}
    assert!(matches!(stream.err(), Some(Error::Closed)));
}

#[tokio::test]
async fn error_is_the_last_result() {
    let model = model().await;
    let config = endless(&*model).await;
    let stream = model.generate(PROMPT, config);
    let token = stream.cancellation_token();
    let mut results = stream.into_results();
    results.next().await.unwrap().unwrap();
    token.cancel();
    let rest: Vec<_> = results.collect().await;
    assert!(matches!(rest.last(), Some(Err(Error::Cancelled))));
    assert!(rest.iter().rev().skip(1).all(Result::is_ok));
}

#[tokio::test]
async fn logprobs_on_request() {
    let model = model().await;
    let tokens: Vec<Token> = model.generate(PROMPT, GenerateConfig::new().max_tokens(5).logprobs(3)).collect().await;
    for token in tokens {
        let logprobs = token.logprobs.unwrap();
        assert_eq!(logprobs.top.len(), 3);
        assert_eq!(logprobs.top[0], (token.id, logprobs.logprob), "greedy takes the likeliest");
        assert!(logprobs.logprob < 0.0);
    }
}
