//! Many requests at one model: queue, priorities, deadlines, cancellation, shared prefixes, figures. On a
//! scripted model, whose steps the tests take one by one where that matters.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::join_all};
use tokenflow::{
    Error, FinishReason, GenerateConfig, LoadConfig, Message, ModelStats, TextModel, TokenStream,
    testing::{Pass, ScriptedModel},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::scripted::until;

/// Tokens of 4 bytes in blocks of 16.
const BLOCK_BYTES: usize = 64;

/// Answers that last.
fn long_answer(_: &str) -> String {
    "word ".repeat(2000)
}

fn model(config: LoadConfig) -> Box<dyn TextModel> {
    ScriptedModel::new(long_answer).load_config(config).build().unwrap()
}

/// A model that takes a step only when it is told to, once it is held.
struct Stepped {
    model: Box<dyn TextModel>,
    held: Arc<AtomicBool>,
    steps: Sender<()>,
    passes: Receiver<Pass>,
}

impl Stepped {
    fn new() -> Self {
        let (steps, allowed) = mpsc::channel();
        let (begun, passes) = mpsc::channel();
        let held = Arc::new(AtomicBool::new(false));
        let is_held = held.clone();
        let hook = move |pass| {
            if is_held.load(Ordering::SeqCst) {
                let _ = begun.send(pass);
                let _ = allowed.recv();
            }
        };
        // Nobody pauses, and no prompt is cut.
        let config = LoadConfig::new().stream_buffer(100_000).max_batched_tokens(100_000);
        let model = ScriptedModel::new(long_answer).on_pass(hook).load_config(config).build().unwrap();
        Self { model, held, steps, passes }
    }

    /// Holds the model in its next pass.
    fn hold(&self) -> Pass {
        self.held.store(true, Ordering::SeqCst);
        self.begun()
    }

    /// Lets the pass that has begun end, and holds the next one.
    fn step(&self) -> Pass {
        self.steps.send(()).unwrap();
        self.begun()
    }

    fn begun(&self) -> Pass {
        self.passes.recv_timeout(Duration::from_secs(10)).expect("a pass begins")
    }
}

fn idle(stats: ModelStats) -> bool {
    (stats.running, stats.waiting, stats.kv_used_bytes) == (0, 0, 0)
}

#[tokio::test]
async fn dropped_stream_leaves_the_next_pass() {
    let stepped = Stepped::new();
    let mut streams: Vec<_> =
        (0..3).map(|_| stepped.model.generate("prompt", GenerateConfig::new().max_tokens(100_000))).collect();
    for stream in &mut streams {
        stream.next().await.unwrap();
    }
    assert_eq!(stepped.hold().sequences, 3);
    drop(streams.remove(1));
    assert_eq!(stepped.step().sequences, 2);
    streams[0].cancellation_token().cancel();
    assert_eq!(stepped.step().sequences, 1);
    let stats = stepped.model.stats();
    assert_eq!((stats.running, stats.waiting, stats.cancelled), (1, 0, 2));
    drop((stepped.steps, streams));
    until(&*stepped.model, idle).await;
}

#[tokio::test]
async fn simultaneous_requests_share_their_first_pass() {
    // The first one is tokenized long before the last one.
    let prompt = "a prompt ".repeat(100);
    let begin = |_| {
        let stepped = Stepped::new();
        stepped.held.store(true, Ordering::SeqCst);
        let _streams: Vec<_> = (0..8).map(|_| stepped.model.generate(&prompt, GenerateConfig::new())).collect();
        let first = stepped.begun().sequences;
        drop(stepped.steps);
        first
    };
    // On a busy machine it may take some too long.
    let firsts: Vec<_> = (0..20).map(begin).collect();
    assert!(firsts.iter().filter(|first| **first == 8).count() > 10, "{firsts:?}");
}

#[tokio::test]
async fn dropped_calls_free_everything_in_every_state() {
    // Two run, the others wait in the queue or for it.
    let model = model(LoadConfig::new().parallel_slots(2).queue_limit(4));
    let prompts = vec!["a prompt"; 100];
    for delay in [0, 1, 5, 20] {
        let batch = model.batch_generate(&prompts, GenerateConfig::new().max_tokens(5000));
        assert!(timeout(Duration::from_millis(delay), batch).await.is_err());
        until(&*model, idle).await;
        let long: Vec<String> = (0..100).map(|i| format!("{i} {}", "x".repeat(20_000))).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        let classify = model.classify(&long, GenerateConfig::new());
        let _ = timeout(Duration::from_millis(delay), classify).await;
        until(&*model, idle).await;
    }
    let streams: Vec<_> = (0..64).map(|_| model.generate("a prompt", GenerateConfig::new())).collect();
    drop(streams);
    until(&*model, idle).await;
}

#[tokio::test]
async fn deadline_ends_a_request_in_every_state() {
    let model = model(LoadConfig::new().parallel_slots(1).stream_buffer(1).queue_limit(1000));
    let begun = Instant::now();
    // The same instant for all: none has time left when another's is over.
    let config = || GenerateConfig::new().max_tokens(10_000).deadline(begun + Duration::from_millis(100));
    // One runs until its reader is slow, the others wait; a batch waits with them.
    let mut streams: Vec<_> = (0..100).map(|_| model.generate("prompt", config())).collect();
    let prompts = vec!["prompt"; 200];
    let (batch, classified) =
        tokio::join!(model.batch_generate(&prompts, config()), model.classify(&prompts, config().priority(-1)));
    for result in batch.unwrap() {
        assert!(matches!(result.err, Some(Error::DeadlineExceeded)), "{:?}", result.err);
    }
    assert!(matches!(classified, Err(Error::DeadlineExceeded)));
    for stream in &mut streams {
        while stream.next().await.is_some() {}
        assert_eq!(stream.finish_reason(), Some(FinishReason::Error));
        assert!(matches!(stream.err(), Some(Error::DeadlineExceeded)));
    }
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert!(matches!(model.err(), Some(Error::DeadlineExceeded)));
    until(&*model, idle).await;
    // A deadline that has passed, one that is far away, and one beyond all times.
    let past = model.generate("prompt", GenerateConfig::new().deadline(begun)).text().await;
    assert!(matches!(past, Err(Error::DeadlineExceeded)));
    for far in [Duration::from_secs(3600), Duration::MAX] {
        let config = GenerateConfig::new().max_tokens(3).deadline(far);
        assert_eq!(model.generate("prompt", config).text().await.unwrap(), "wor");
    }
}

#[tokio::test]
async fn cancel_while_tokenizing() {
    // Renders for a second: the work budget of a template grows with its input. Two of them occupy all threads for long
    // prompts.
    let slow = "{% for i in range(20000) %}{% for j in range(200) %}{% endfor %}{% endfor %}a";
    let large = "a".repeat(4 << 20);
    let long = "a".repeat(40 << 10);
    let model = model(LoadConfig::new().chat_template(slow).parallel_slots(1).queue_limit(4));
    let chat = |config| model.chat(&[Message::user("a")], config);
    let mut slow = [(); 2].map(|()| chat(GenerateConfig::new().template_var("large", large.clone())));
    until(&*model, |stats| stats.waiting == 2).await;
    let token = CancellationToken::new();
    let late = model.generate(&long, GenerateConfig::new().deadline(Duration::from_millis(20)));
    let cancelled = model.generate(&long, GenerateConfig::new().cancellation(token.clone()));
    let dropped = model.generate(&long, GenerateConfig::new());
    assert!(matches!(model.generate("a", GenerateConfig::new()).err(), Some(Error::Overloaded { limit: 4 })));
    token.cancel();
    drop(dropped);
    assert!(matches!(cancelled.text().await, Err(Error::Cancelled)));
    assert!(matches!(late.text().await, Err(Error::DeadlineExceeded)));
    until(&*model, |stats| (stats.waiting, stats.cancelled, stats.failed) == (2, 2, 2)).await;
    // Their queue slots are free for others, and the slow ones can be cancelled as well.
    let others = [(); 3].map(|()| model.generate(&long, GenerateConfig::new().max_tokens(1)));
    for stream in &mut slow {
        assert!(stream.next().now_or_never().is_none(), "its prompt is no tokens yet");
        stream.cancellation_token().cancel();
    }
    until(&*model, |stats| (stats.waiting, stats.passes) == (3, 0)).await;
    for other in others {
        assert_eq!(other.text().await.unwrap(), "w");
    }
    for stream in slow {
        assert!(matches!(stream.text().await, Err(Error::Cancelled)));
    }
}

#[tokio::test]
async fn burst_is_admitted_while_slots_are_idle() {
    let burst = |model: &dyn TextModel, count: usize| -> Vec<TokenStream> {
        (0..count).map(|_| model.generate("a prompt", GenerateConfig::new().max_tokens(2))).collect()
    };
    // More than may wait, but all of them fit into the cache.
    let idle_model = model(LoadConfig::new());
    for stream in burst(&*idle_model, 600) {
        assert_eq!(stream.text().await.unwrap(), "wo");
    }
    // Eight run and sixteen wait, whether or not the eight have begun.
    let (go, wait) = mpsc::channel::<()>();
    let held = ScriptedModel::new(|_| "word".into())
        .on_pass(move |_| {
            let _ = wait.recv();
        })
        .load_config(LoadConfig::new().parallel_slots(8).queue_limit(16))
        .build()
        .unwrap();
    let mut streams = burst(&*held, 100);
    until(&*held, |stats| stats.running + stats.waiting == 24).await;
    streams.extend(burst(&*held, 10));
    drop(go);
    let mut answered = 0;
    for stream in streams {
        match stream.text().await {
            Ok(text) => answered += usize::from(text == "wo"),
            Err(error) => assert!(matches!(error, Error::Overloaded { limit: 16 }), "{error}"),
        }
    }
    assert_eq!(answered, 24);
}

/// Panics when it is woken.
struct Panics;

impl std::task::Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("as a test wants it");
    }
}

#[tokio::test]
async fn panicking_waker_ends_only_its_own_request() {
    let model = model(LoadConfig::new().stream_buffer(1));
    let mut neighbor = model.generate("a neighbor", GenerateConfig::new().max_tokens(1000));
    let waker = std::task::Waker::from(Arc::new(Panics));
    for _ in 0..3 {
        let config = || GenerateConfig::new().max_tokens(5);
        let failed = model.stats().failed;
        let mut stream = model.generate("a prompt", config());
        let _ = stream.poll_next_unpin(&mut std::task::Context::from_waker(&waker));
        let mut too_long = model.generate(&"x".repeat(1 << 20), config());
        let _ = too_long.poll_next_unpin(&mut std::task::Context::from_waker(&waker));
        let mut classified = model.classify(&["a", "b"], config());
        let _ = classified.as_mut().poll(&mut std::task::Context::from_waker(&waker));
        assert!(neighbor.next().await.is_some());
        // The request that is too long has failed, and has woken its reader.
        until(&*model, |stats| stats.failed > failed).await;
        assert!(neighbor.next().await.is_some());
        drop((stream, too_long, classified));
        assert_eq!(model.generate("another", config()).text().await.unwrap(), "word ");
    }
    drop(neighbor);
    until(&*model, idle).await;
    model.close().await.unwrap();
}

#[tokio::test]
async fn higher_priority_first_then_arrival_order() {
    let begun = Arc::new(Mutex::new(Vec::new()));
    let order = begun.clone();
    let (go, wait) = mpsc::channel::<()>();
    let mut first = true;
    let model = ScriptedModel::new(move |prompt| {
        order.lock().unwrap().push(prompt.to_owned());
        "ok".into()
    })
    .on_pass(move |_| {
        if std::mem::take(&mut first) {
            let _ = wait.recv();
        }
    })
    .load_config(LoadConfig::new().parallel_slots(1))
    .build()
    .unwrap();
    let start = |name: &str, priority| model.generate(name, GenerateConfig::new().priority(priority));
    let first = start("first", 0);
    until(&*model, |stats| stats.running == 1).await;
    let streams = [first, start("low", -5), start("a", 0), start("high", 7), start("b", 0)];
    until(&*model, |stats| stats.running == 1 && stats.waiting == 4).await;
    // Give the tokenizer time to hand over the last one; it does so in order.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(go);
    join_all(streams.map(|stream| stream.text())).await;
    assert_eq!(*begun.lock().unwrap(), ["first", "high", "a", "b", "low"]);
}

#[tokio::test]
async fn next_chat_turn_prefills_only_new_tokens() {
    let model = ScriptedModel::new(|prompt| format!("{} bytes", prompt.len())).build().unwrap();
    let mut messages = vec![Message::system("Be brief. ".repeat(20)), Message::user("Hello")];
    let answer = model.chat(&messages, GenerateConfig::new()).text().await.unwrap();
    let first = model.metrics();
    assert_eq!(first.cached_prompt_tokens, 0);
    messages.extend([Message::assistant(answer), Message::user("And now?")]);
    let answer = model.chat(&messages, GenerateConfig::new()).text().await.unwrap();
    let second = model.metrics();
    // All of the first prompt's blocks; its last token began the answer.
    assert_eq!(second.cached_prompt_tokens, (first.prompt_tokens - 1) / 16 * 16);
    // The same from a model that keeps nothing.
    let config = LoadConfig::new().prefix_cache_tokens(0);
    let other = ScriptedModel::new(|prompt| format!("{} bytes", prompt.len())).load_config(config).build().unwrap();
    assert_eq!(other.chat(&messages, GenerateConfig::new()).text().await.unwrap(), answer);
    assert_eq!(other.stats().kv_cached_bytes, 0);
    // Another tenant shares nothing.
    model.chat(&messages, GenerateConfig::new().cache_salt("tenant")).text().await.unwrap();
    assert_eq!(model.metrics().cached_prompt_tokens, 0);
}

#[tokio::test]
async fn shared_prefix_is_computed_once() {
    let model = model(LoadConfig::new());
    let head = "Sort this mail into a category. ".repeat(10);
    let prompts: Vec<String> = (0..100).map(|i| format!("{head}{i:03}")).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    model.classify(&prompts, GenerateConfig::new()).await.unwrap();
    let stats = model.stats();
    let (head, rest) = (head.len() as u64 / 16 * 16, 100 * (prompts[0].len() as u64 + 1 - head.len() as u64 / 16 * 16));
    assert_eq!(stats.batched_tokens, head + rest);
    assert_eq!(stats.cached_prompt_tokens, 99 * head);
    assert_eq!(model.metrics().cached_prompt_tokens as u64, 99 * head);
}

#[tokio::test]
async fn preemption_keeps_answers() {
    let prompts: Vec<String> = (0..20).map(|i| format!("prompt {i}")).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let answer = |prompt: &str| format!("This is the answer to {prompt:?}, and it is a rather long one.");
    let config = LoadConfig::new().kv_cache_bytes(20 * BLOCK_BYTES).context_len(128);
    let model = ScriptedModel::new(answer).load_config(config).build().unwrap();
    for (prompt, result) in prompts.iter().zip(model.batch_generate(&prompts, GenerateConfig::new()).await.unwrap()) {
        assert_eq!(result.text(), answer(prompt));
    }
    assert!(model.stats().preemptions > 0);
    until(&*model, idle).await;
}

#[tokio::test]
async fn memory_stays_flat_over_many_requests() {
    let model =
        ScriptedModel::new(|prompt| prompt.into()).load_config(LoadConfig::new().context_len(256)).build().unwrap();
    let mut cached = 0;
    for round in 0..20 {
        let prompts: Vec<String> = (0..100).map(|i| format!("request {i} of round {round}")).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        model.batch_generate(&prompts, GenerateConfig::new()).await.unwrap();
        let stats = model.stats();
        assert_eq!(stats.kv_used_bytes, 0);
        if round == 0 {
            cached = stats.kv_cached_bytes;
        }
        assert!(stats.kv_cached_bytes <= cached.max(1 << 20));
    }
}

#[tokio::test]
async fn batch_leaves_queue_room_for_streams() {
    let model = model(LoadConfig::new().queue_limit(2).parallel_slots(1));
    let prompts = vec!["prompt"; 500];
    let batch = model.batch_generate(&prompts, GenerateConfig::new().max_tokens(4));
    let stream = async {
        until(&*model, |stats| stats.waiting > 10).await;
        model.generate("prompt", GenerateConfig::new().max_tokens(4).priority(1)).text().await
    };
    let (batch, stream) = tokio::join!(batch, stream);
    assert_eq!(stream.unwrap(), "word");
    assert_eq!(batch.unwrap().len(), 500);
}

#[tokio::test]
async fn stats_count_every_end() {
    let model = model(LoadConfig::new().context_len(64).stream_buffer(1));
    model.generate("a", GenerateConfig::new().max_tokens(3)).text().await.unwrap();
    assert!(model.err().is_none());
    model.generate("a", GenerateConfig::new().stop(vec!["rd".into()])).text().await.unwrap();
    assert!(model.generate(&"a".repeat(100), GenerateConfig::new()).text().await.is_err());
    assert!(matches!(model.err(), Some(Error::PromptTooLong { tokens: 101, limit: 64, .. })), "{:?}", model.err());
    assert!(model.chat(&[], GenerateConfig::new()).text().await.is_err());
    assert!(matches!(model.err(), Some(Error::InvalidConfig { field: "messages", .. })));
    assert!(model.generate("a", GenerateConfig::new().top_p(2.0)).text().await.is_err());
    assert!(model.generate("a", GenerateConfig::new().logit_bias([(9999, 1.0)].into())).text().await.is_err());
    assert!(matches!(model.err(), Some(Error::InvalidConfig { field: "logit_bias", .. })));
    let mut stream = model.generate("a", GenerateConfig::new());
    stream.next().await.unwrap();
    drop(stream);
    until(&*model, idle).await;
    let stats = model.stats();
    assert_eq!((stats.stopped, stats.length_limited, stats.cancelled, stats.failed), (1, 1, 1, 4));
    assert!(stats.tokens_per_pass() >= 1.0);
    assert!(stats.sampled_tokens > 3 + 4);
}

#[tokio::test]
async fn panic_ends_its_pass_not_the_model() {
    let answer = |prompt: &str| if prompt == "bad" { panic!("as the test wants") } else { "fine".to_owned() };
    let model = ScriptedModel::new(answer).build().unwrap();
    let error = model.generate("bad", GenerateConfig::new()).text().await.unwrap_err();
    assert!(error.to_string().contains("as the test wants"), "{error}");
    assert_eq!(model.generate("good", GenerateConfig::new()).text().await.unwrap(), "fine");
    assert!(model.generate("bad", GenerateConfig::new()).text().await.is_err(), "nothing of the failed pass is kept");
    until(&*model, idle).await;
}

#[tokio::test]
async fn close_ends_waiting_requests() {
    let model = model(LoadConfig::new().parallel_slots(1));
    let prompts = vec!["prompt"; 200];
    let streams: Vec<_> = (0..20).map(|_| model.generate("prompt", GenerateConfig::new())).collect();
    let batch = model.batch_generate(&prompts, GenerateConfig::new().max_tokens(1000));
    let close = async {
        until(&*model, |stats| stats.running > 0).await;
        model.close().await
    };
    let (batch, closed) = tokio::join!(batch, close);
    closed.unwrap();
    assert!(batch.unwrap().iter().any(|result| matches!(result.err, Some(Error::Closed))));
    for stream in streams {
        assert!(matches!(stream.text().await, Err(Error::Closed)));
    }
    assert!(idle(model.stats()), "{:?}", model.stats());
}
