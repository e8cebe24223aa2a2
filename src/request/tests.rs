//! A client of a server that streams words: no tokenizer, no scheduler, no thread. All else comes from this module.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::{Error, FinishReason, GenerateConfig, Result, Token, TokenStream, stream::End, text::Prompt};

/// A server that repeats a prompt's words, and waits for ever at the word "hang".
#[derive(Default)]
struct Server {
    disconnects: AtomicUsize,
}

impl Server {
    fn post(self: &Arc<Self>, prompt: &str) -> Result<mpsc::Receiver<String>> {
        if prompt.is_empty() {
            return Err(Error::Remote { endpoint: "http://server".into(), reason: "400: an empty prompt".into() });
        }
        let (sender, words) = mpsc::channel(1);
        let (server, prompt) = (self.clone(), prompt.to_owned());
        tokio::spawn(async move {
            for word in prompt.split_inclusive(' ') {
                if word.trim() == "hang" {
                    sender.closed().await;
                }
                if sender.send(word.to_owned()).await.is_err() {
                    server.disconnects.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        });
        Ok(words)
    }
}

/// Sends requests to the server, as many at a time as it has slots.
struct Client {
    server: Arc<Server>,
    slots: Arc<Semaphore>,
}

impl Executor for Client {
    type Adapter = ();

    fn adapter(&self, config: &GenerateConfig) -> Result<()> {
        config.adapter.as_ref().map_or(Ok(()), |name| Err(Error::config("adapter", format!("{name:?}; it has none"))))
    }

    fn submit(&self, request: Request<()>) -> Result<()> {
        tokio::spawn(run(self.server.clone(), self.slots.clone(), request));
        Ok(())
    }
}

async fn run(server: Arc<Server>, slots: Arc<Semaphore>, request: Request<()>) {
    let Request { prompt, config, task, mut context, .. } = request;
    let slot = context.unless_over(async { slots.acquire().await.map_err(|_| Error::Closed) }).await;
    if let Err(error) = slot {
        return context.fail(error);
    }
    context.begin();
    let mut timings = RequestTimings::new(context.submitted);
    timings.started = Some(Instant::now());
    let mut counts = TokenCounts::default();
    let most = if matches!(task, Task::Classify { .. }) { 1 } else { config.max_tokens };
    let streamed = context.unless_over(async {
        let Prompt::Text(prompt) = prompt else { return Err(Error::NoChatTemplate) };
        let mut words = server.post(&prompt)?;
        while let Some(word) = words.recv().await {
            timings.token();
            counts.delivered += 1;
            let metrics = timings.metrics(counts, MemoryUse::default());
            // A reader that is gone has cancelled the request.
            let _ = context.sender.send(vec![Token::new(0, word)], metrics).await;
            if counts.delivered == most {
                return Ok(End::length());
            }
        }
        Ok(End::stop())
    });
    let end = streamed.await.unwrap_or_else(End::from);
    let metrics = timings.metrics(counts, MemoryUse::default());
    context.end(end, metrics);
}

/// A handle with room for 2 streams that run and 2 that wait.
fn client() -> (Frontend<Client>, Arc<Server>) {
    let server = Arc::<Server>::default();
    let client = Client { server: server.clone(), slots: Arc::new(Semaphore::new(2)) };
    let limits = RequestLimits { vocab_size: None };
    let options = FrontendOptions { name: "remote".into(), stream_buffer: 4, limits };
    let queue = Arc::new(AdmissionQueue::new(2, 2));
    (Frontend::new(client, options, queue, Arc::default(), Arc::default()), server)
}

fn text(prompt: &str) -> Prompt {
    Prompt::Text(prompt.to_owned())
}

async fn read(mut stream: TokenStream) -> (String, FinishReason, Option<Error>) {
    let mut text = String::new();
    while let Some(token) = stream.next().await {
        text += &token.text;
    }
    (text, stream.finish_reason().unwrap(), stream.err().cloned())
}

async fn until(condition: impl Fn() -> bool) {
    let reached = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    });
    reached.await.unwrap();
}

#[tokio::test]
async fn a_remote_stream_has_text_metrics_and_counters() {
    let (client, _) = client();
    let mut stream = client.generate(text("one two three"), GenerateConfig::new().max_tokens(2));
    let tokens: Vec<Token> = stream.by_ref().collect().await;
    assert_eq!(tokens.iter().map(|token| token.text.as_str()).collect::<String>(), "one two ");
    assert_eq!((stream.finish_reason(), stream.metrics().generated_tokens), (Some(FinishReason::Length), 2));
    assert!(stream.metrics().total_duration >= stream.metrics().time_to_first_token);
    assert_eq!(read(client.generate(text("a b"), GenerateConfig::new())).await.1, FinishReason::Stop);
    let stats = client.stats();
    assert_eq!((stats.length_limited, stats.stopped, stats.waiting), (1, 1, 0));
    assert!(client.last().0.generated_tokens == 2 && client.last().1.is_none());
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let (client, _) = client();
    let streams: Vec<_> = (0..5).map(|_| client.generate(text("hang"), GenerateConfig::new())).collect();
    let refused = streams.iter().filter(|stream| matches!(stream.err(), Some(Error::Overloaded { limit: 2 })));
    assert_eq!((refused.count(), client.stats().waiting), (1, 4));
    drop(streams);
    until(|| client.stats().cancelled == 4).await;
    assert_eq!(read(client.generate(text("again"), GenerateConfig::new())).await.0, "again");
}

#[tokio::test]
async fn dropping_a_remote_stream_disconnects() {
    let (client, server) = client();
    let mut stream = client.generate(text("go hang"), GenerateConfig::new());
    assert_eq!(stream.next().await.unwrap().text, "go ");
    drop(stream);
    until(|| server.disconnects.load(Ordering::SeqCst) == 1 && client.stats().cancelled == 1).await;
}

#[tokio::test]
async fn deadlines_and_cancellation_end_requests_that_wait_and_that_run() {
    let (client, _) = client();
    let hang = || client.generate(text("hang"), GenerateConfig::new());
    let running = (hang(), hang());
    let soon = GenerateConfig::new().deadline(Duration::from_millis(5));
    assert!(matches!(read(client.generate(text("a"), soon)).await.2, Some(Error::DeadlineExceeded)));
    running.0.cancellation_token().cancel();
    assert_eq!(read(running.0).await.1, FinishReason::Cancelled);
    assert_eq!(read(client.generate(text("b"), GenerateConfig::new())).await.0, "b");
}

#[tokio::test]
async fn batches_keep_order_and_the_failure_of_a_prompt_is_its_own() {
    let (client, _) = client();
    let prompts: Vec<String> = (0..200).map(|i| if i == 7 { String::new() } else { format!("answer {i}") }).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let results = client.batch_generate(&prompts, &GenerateConfig::new()).await.unwrap();
    for (index, result) in results.iter().enumerate() {
        assert_eq!((result.text().as_str(), result.err.is_some()), (prompts[index], index == 7));
    }
    assert_eq!(client.last().0.generated_tokens, 2 * 199);
    let labels = client.classify(&["yes or no", "no"], &GenerateConfig::new()).await.unwrap();
    assert_eq!(labels.iter().map(|label| label.token.text.as_str()).collect::<Vec<_>>(), ["yes ", "no"]);
    let failed = client.classify(&["yes", ""], &GenerateConfig::new()).await;
    assert!(matches!(failed, Err(Error::Remote { .. })) && matches!(client.last().1, Some(Error::Remote { .. })));
}

#[tokio::test]
async fn configs_that_a_remote_model_cannot_honor_are_refused() {
    let (client, _) = client();
    let refused = |config: GenerateConfig| match client.generate(text("a"), config).err() {
        Some(Error::InvalidConfig { field, .. }) => *field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(GenerateConfig::new().temperature(-1.0)), "temperature");
    assert_eq!(refused(GenerateConfig::new().adapter("a")), "adapter");
    assert_eq!(refused(GenerateConfig::new().return_logits(true)), "return_logits");
    // Without a vocabulary all ids may be known.
    assert!(client.generate(text("a"), GenerateConfig::new().stop_tokens(vec![1 << 30])).err().is_none());
    assert_eq!(client.stats().failed, 3);
}

#[tokio::test]
async fn closing_ends_remote_requests_and_later_calls() {
    let (client, _) = client();
    let streams: Vec<_> = (0..4).map(|_| client.generate(text("hang"), GenerateConfig::new())).collect();
    client.close();
    for stream in streams {
        assert!(matches!(read(stream).await.2, Some(Error::Closed)));
    }
    assert!(matches!(client.generate(text("a"), GenerateConfig::new()).err(), Some(Error::Closed)));
    assert!(matches!(client.batch_generate(&["a"], &GenerateConfig::new()).await, Err(Error::Closed)));
}
