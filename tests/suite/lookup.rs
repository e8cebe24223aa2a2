//! Tokens guessed by looking them up: they save passes and change nothing. On a scripted model that says what
//! it is told.

use std::{thread, time::Duration};

use futures::StreamExt;
use tokenflow::{
    FinishReason, GenerateConfig, GenerateMetrics, LoadConfig, Message, TextModel, Token, testing::ScriptedModel,
};

use crate::scripted::until;

const TEXT: &str = "The ship left the harbour at dawn, and the harbour master went home. Then the ship came back. ";
/// Tokens of 4 bytes in blocks of 16.
const BLOCK_BYTES: usize = 64;

/// A model that repeats the prompt, with a surprise between.
fn parrot(config: LoadConfig) -> Box<dyn TextModel> {
    model(|prompt| format!("{prompt}¿{prompt}"), config)
}

/// A model whose passes take the same time for any number of tokens, so that drafts are cheap.
fn model(answer: impl FnMut(&str) -> String + Send + 'static, config: LoadConfig) -> Box<dyn TextModel> {
    let hook = |_| thread::sleep(Duration::from_micros(100));
    ScriptedModel::new(answer).on_pass(hook).load_config(config).build().unwrap()
}

/// Everything that a reader sees of an answer, without times.
async fn seen(model: &dyn TextModel, config: GenerateConfig) -> (Vec<Token>, Option<FinishReason>, GenerateMetrics) {
    let mut stream = model.generate(TEXT, config);
    let tokens = (&mut stream).collect().await;
    (tokens, stream.finish_reason(), stream.metrics())
}

#[tokio::test]
async fn repetition_takes_fewer_passes() {
    let (plain, guessing) = (parrot(LoadConfig::new()), parrot(LoadConfig::new()));
    let (tokens, _, without) = seen(&*plain, GenerateConfig::new()).await;
    let (guessed, _, with) = seen(&*guessing, GenerateConfig::new().prompt_lookup(8)).await;
    assert_eq!(guessed, tokens);
    let (plain, guessing) = (plain.stats(), guessing.stats());
    assert_eq!(plain.passes as usize, 1 + tokens.len());
    assert!(guessing.passes < plain.passes / 2, "{} passes of {}", guessing.passes, plain.passes);
    assert_eq!(guessing.passes + guessing.accepted_tokens, plain.passes, "each right guess saves a pass");
    assert_eq!(guessing.sampled_tokens, plain.sampled_tokens);
    assert_eq!(guessing.batched_tokens + guessing.accepted_tokens, plain.batched_tokens + guessing.drafted_tokens);
    assert_eq!((plain.drafted_tokens, plain.accepted_tokens), (0, 0));
    assert_eq!(with.generated_tokens, without.generated_tokens);
    assert_eq!(
        (with.drafted_tokens, with.accepted_tokens),
        (guessing.drafted_tokens as usize, guessing.accepted_tokens as usize)
    );
}

#[tokio::test]
async fn drafts_end_where_plain_decoding_ends() {
    let (plain, guessing) = (parrot(LoadConfig::new()), parrot(LoadConfig::new()));
    let mut configs: Vec<_> = (1..60).map(|n| GenerateConfig::new().max_tokens(n)).collect();
    configs.extend((0..40).map(|at| GenerateConfig::new().stop(vec![TEXT[at..at + 5].to_owned()])));
    configs.extend(b"mzh.wk".map(|byte| GenerateConfig::new().stop_tokens(vec![u32::from(byte - b'!')])));
    for config in configs {
        let (tokens, reason, without) = seen(&*plain, config.clone()).await;
        for most in [1, 3, 64] {
            let (guessed, same_reason, with) = seen(&*guessing, config.clone().prompt_lookup(most)).await;
            assert_eq!((&guessed, same_reason), (&tokens, reason), "{config:?}");
            assert_eq!(with.generated_tokens, without.generated_tokens);
        }
    }
    assert!(guessing.stats().accepted_tokens > 0);
}

#[tokio::test]
async fn drafts_fill_the_context_exactly() {
    let model = parrot(LoadConfig::new().context_len(160));
    let (tokens, reason, metrics) = seen(&*model, GenerateConfig::new().prompt_lookup(8)).await;
    assert_eq!(reason, Some(FinishReason::Length));
    assert_eq!(tokens.len() + metrics.prompt_tokens, 160);
}

#[tokio::test]
async fn next_turn_hits_the_prefix_cache() {
    for len in (1..40).step_by(3) {
        let mut found = Vec::new();
        for most in [0, 8] {
            let model = model(move |prompt| format!("{prompt}{}", &TEXT[..len]), LoadConfig::new());
            let config = || GenerateConfig::new().prompt_lookup(most);
            let mut messages = vec![Message::user(TEXT)];
            let answer = model.chat(&messages, config()).text().await.unwrap();
            // An answer whose very tokens are in the next prompt.
            let mut next = model.generate(&format!("user: {TEXT}\n<|reply|>{answer}"), config());
            while next.next().await.is_some() {}
            found.push(next.metrics().cached_prompt_tokens);
            messages.extend([Message::assistant(answer), Message::user("And then?")]);
            found.push(model.chat(&messages, config()).text().await.unwrap().len());
            found.push(model.metrics().cached_prompt_tokens);
        }
        let (without, with) = found.split_at(3);
        assert_eq!(without, with, "{len}");
        assert!(without[0] > TEXT.len());
    }
}

#[tokio::test]
async fn preemption_keeps_answers() {
    let prompts: Vec<String> = (0..20).map(|i| format!("{i} and {i} and {i} make {}", 3 * i)).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let model = parrot(LoadConfig::new().kv_cache_bytes(20 * BLOCK_BYTES).context_len(128));
    let config = GenerateConfig::new().prompt_lookup(8);
    for (prompt, result) in prompts.iter().zip(model.batch_generate(&prompts, config).await.unwrap()) {
        assert_eq!(result.text(), format!("{prompt}¿{prompt}"));
    }
    assert!(model.stats().preemptions > 0 && model.stats().accepted_tokens > 0);
    until(&*model, |stats| (stats.running, stats.kv_used_bytes) == (0, 0)).await;
}

#[tokio::test]
async fn slow_reader_misses_no_token() {
    let model = parrot(LoadConfig::new().stream_buffer(1));
    let expected = model.generate(TEXT, GenerateConfig::new()).text().await.unwrap();
    let mut stream = model.generate(TEXT, GenerateConfig::new().prompt_lookup(8));
    let mut text = String::new();
    while let Some(token) = stream.next().await {
        text += &token.text;
        if text.len().is_multiple_of(16) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    assert_eq!(text, expected);
    assert_eq!(stream.finish_reason(), Some(FinishReason::Stop));
}
