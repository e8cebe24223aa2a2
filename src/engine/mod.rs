//! What runs requests: a front thread that turns prompts into tokens, and a worker thread that packs
//! all running sequences into shared forward passes. It knows no architecture.

mod blocks;
mod front;
mod sampler;
mod scheduler;
mod sequence;
mod worker;

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, GenerateConfig, GenerateMetrics, Result, TokenSender, TokenStream,
    decoder::Forward,
    text::{Prompt, TextProcessor},
};
use front::PromptLimits;
pub use scheduler::Limits;
use worker::Worker;

/// How an engine is sized.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names the threads.
    pub name: String,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Tokens the model knows.
    pub vocab_size: usize,
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Events a stream buffers.
    pub stream_buffer: usize,
    pub limits: Limits,
    /// The memory of the weights and of a block of the cache, for the metrics.
    pub weight_bytes: usize,
    pub block_bytes: usize,
}

/// The handle to a model's threads. Dropping it stops them.
pub struct Engine {
    jobs: mpsc::Sender<Request>,
    queue: Arc<Semaphore>,
    queue_limit: usize,
    stream_buffer: usize,
    wake: Arc<Notify>,
    state: Arc<State>,
}

/// What handle and threads share.
#[derive(Default)]
struct State {
    /// Fires when the model is to close.
    closing: CancellationToken,
    /// Fires when the worker has freed everything.
    closed: CancellationToken,
    last: Mutex<LastOperation>,
}

#[derive(Default, Clone)]
struct LastOperation {
    metrics: GenerateMetrics,
    error: Option<Error>,
}

/// A request on its way to the worker.
struct Request {
    prompt: Prompt,
    config: GenerateConfig,
    mode: Mode,
    sender: TokenSender,
    submitted: Instant,
    /// The place in the queue, given back when the sequence starts to run.
    place: OwnedSemaphorePermit,
}

/// What a request asks for.
enum Mode {
    Generate,
    /// One token, whichever it is, with its logits if somebody waits for them.
    Classify(Option<oneshot::Sender<Vec<f32>>>),
}

impl Engine {
    /// Starts the threads.
    pub fn start(decoder: Box<dyn Forward>, text: Arc<TextProcessor>, options: Options) -> Result<Self> {
        let state = Arc::new(State::default());
        let wake = Arc::new(Notify::new());
        let (jobs, front_jobs) = mpsc::channel(options.queue_limit);
        let (ready, worker_jobs) = mpsc::channel(options.queue_limit);
        let spawn = |part: &str, run: Box<dyn FnOnce() + Send>| {
            let name = format!("{} {part}", options.name);
            thread::Builder::new().name(name).spawn(run).map(drop).map_err(|error| Error::Internal {
                reason: "a thread could not be started".into(),
                source: Some(Arc::new(error)),
            })
        };
        let (front_text, closing) = (text.clone(), state.closing.clone());
        let limits = PromptLimits { context_len: options.context_len, vocab_size: options.vocab_size };
        spawn("text", Box::new(move || front::run(&front_text, &limits, front_jobs, &ready, &closing)))?;
        let (queue_limit, stream_buffer) = (options.queue_limit, options.stream_buffer);
        let worker = Worker::new(decoder, text, options.clone(), worker_jobs, wake.clone(), state.clone());
        spawn("worker", Box::new(move || worker.run()))?;
        let queue = Arc::new(Semaphore::new(queue_limit));
        Ok(Self { jobs, queue, queue_limit, stream_buffer, wake, state })
    }

    /// Starts a generation if the queue has a place.
    pub fn generate(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        let place = match Arc::clone(&self.queue).try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(TryAcquireError::NoPermits) => Err(Error::Overloaded { limit: self.queue_limit }),
            Err(TryAcquireError::Closed) => Err(Error::Closed),
        };
        self.start_with(prompt, config, Mode::Generate, place)
    }

    /// Starts a generation as soon as the queue has a place.
    pub async fn generate_queued(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        let place = Arc::clone(&self.queue).acquire_owned().await.map_err(|_| Error::Closed);
        self.start_with(prompt, config, Mode::Generate, place)
    }

    /// Starts to predict one token as soon as the queue has a place. The receiver gets the logits
    /// if the config asks for them.
    pub async fn classify(
        &self,
        prompt: Prompt,
        config: GenerateConfig,
    ) -> (TokenStream, Option<oneshot::Receiver<Vec<f32>>>) {
        let place = Arc::clone(&self.queue).acquire_owned().await.map_err(|_| Error::Closed);
        let (sender, receiver) = config.return_logits.then(oneshot::channel).unzip();
        (self.start_with(prompt, config, Mode::Classify(sender), place), receiver)
    }

    fn start_with(
        &self,
        prompt: Prompt,
        config: GenerateConfig,
        mode: Mode,
        place: Result<OwnedSemaphorePermit>,
    ) -> TokenStream {
        let place = match self.check_open().and(place) {
            Ok(place) => place,
            Err(error) => return self.refuse(error),
        };
        let (sender, stream) = TokenStream::channel_with_wake(self.stream_buffer, &config, self.wake.clone());
        let request = Request { prompt, config, mode, sender, submitted: Instant::now(), place };
        // A place in the queue is a place in the channel; only a closed one refuses.
        match self.jobs.try_send(request) {
            Ok(()) => stream,
            Err(_) => self.refuse(Error::Closed),
        }
    }

    /// A stream that ended before it began.
    pub fn refuse(&self, error: Error) -> TokenStream {
        self.record(GenerateMetrics::default(), Some(error.clone()));
        TokenStream::failed(error)
    }

    /// Whether requests are still taken.
    pub fn check_open(&self) -> Result<()> {
        if self.state.closing.is_cancelled() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Notes how an operation ended.
    pub fn record(&self, metrics: GenerateMetrics, error: Option<Error>) {
        self.state.record(metrics, error);
    }

    /// How the operation that ended last went.
    pub fn last(&self) -> (GenerateMetrics, Option<Error>) {
        let last = self.state.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (last.metrics, last.error)
    }

    /// Ends everything and waits until the model's memory is free.
    pub async fn close(&self) {
        self.state.closing.cancel();
        self.queue.close();
        self.state.closed.cancelled().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.state.closing.cancel();
    }
}

impl State {
    fn record(&self, metrics: GenerateMetrics, error: Option<Error>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = LastOperation { metrics, error };
    }
}
