//! What runs requests: a thread where they wait while another one turns their prompts into tokens, and a worker
//! thread that packs all running sequences into shared forward passes. It knows no architecture.

mod adapters;
mod admission;
mod background;
mod blocks;
mod compute_lock;
mod penalties;
mod prefill_budget;
mod prompt_lookup;
mod request_context;
mod sampler;
mod scheduler;
mod sequence;
mod state;
mod tokenize_queue;
mod tokenizer_thread;
mod worker;

use std::{sync::Arc, thread, time::Instant};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::{
    Error, GenerateConfig, GenerateMetrics, ModelStats, Result, TokenStream,
    decoder::Forward,
    kernels::{
        Isa,
        threads::{ThreadPool, physical_cores},
    },
    text::{Prompt, StopStrings, TextProcessor},
};
pub use adapters::Adapters;
use adapters::LoadedAdapter;
use admission::{AdmissionQueue, Permit};
pub use background::{BackgroundJobs, ComputeSlot, ModelLease};
use compute_lock::{ComputeGuard, ComputeLock};
use request_context::RequestContext;
pub use scheduler::Limits;
use state::ModelState;
use tokenize_queue::TokenizeQueue;
use tokenizer_thread::{PromptLimits, TokenizerThread};
use worker::{Inbox, Worker};

/// Requests of batches that may wait beside those of streams. Few, so that a long batch never stands
/// before a stream with more than these.
const BATCH_PLACES: usize = 64;

/// How an engine is sized.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Names the threads.
    pub name: String,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Tokens the model knows.
    pub vocab_size: usize,
    /// Requests that may wait beyond those that could run at once.
    pub queue_limit: usize,
    /// Events a stream buffers.
    pub stream_buffer: usize,
    /// Threads of a forward pass; `None` for one on each core.
    pub threads: Option<usize>,
    /// What tokens are sampled with.
    pub isa: Isa,
    pub limits: Limits,
    /// The memory of the weights and of a block of the cache, for the metrics.
    pub weight_bytes: usize,
    pub block_bytes: usize,
}

/// The handle to a model's threads. Dropping it stops them.
pub struct Engine {
    name: String,
    jobs: mpsc::Sender<(Prompt, Request)>,
    queue: Arc<AdmissionQueue>,
    batch_queue: Arc<Semaphore>,
    stream_buffer: usize,
    wake: Arc<Notify>,
    state: Arc<ModelState>,
    pub adapters: Arc<Adapters>,
    /// Whose turn it is to compute.
    compute_lock: Arc<ComputeLock>,
    /// Threads that compute together.
    threads: usize,
}

/// A request on its way to the worker.
struct Request {
    config: GenerateConfig,
    stops: Arc<StopStrings>,
    mode: Mode,
    adapter: Option<LoadedAdapter>,
    context: RequestContext,
}

/// A place in a queue, and what changes the model for the request.
type Admission = (Permit, Option<LoadedAdapter>);

/// What a request asks for.
enum Mode {
    Generate,
    /// One token, whichever it is, with its logits if somebody waits for them.
    Classify(Option<oneshot::Sender<Vec<f32>>>),
    /// The tokens of the prompt with their log-probabilities.
    Score,
}

impl Engine {
    /// Starts the threads.
    pub fn start(decoder: Box<dyn Forward>, text: Arc<TextProcessor>, options: EngineOptions) -> Result<Self> {
        let state = Arc::new(ModelState::default());
        let (wake, compute_lock) = (Arc::new(Notify::new()), Arc::new(ComputeLock::default()));
        let slots = options.limits.slots();
        let places = (options.queue_limit + BATCH_PLACES).saturating_add(slots).min(Semaphore::MAX_PERMITS);
        let (jobs, front_jobs) = mpsc::channel(places);
        let (ready, worker_jobs) = mpsc::channel(places);
        let threads = options.threads.unwrap_or_else(physical_cores);
        let pool = ThreadPool::new(&options.name, threads).map_err(not_started)?;
        let name = format!("{} 0", options.name);
        // What candle shares with rayon's threads stays on this one.
        let thread = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(move |_| name.clone())
            .panic_handler(|panic| tracing::error!(error = %Error::panicked("a model's worker", panic.as_ref())))
            .build()
            .map_err(not_started)?;
        let limits = PromptLimits { context_len: options.context_len, vocab_size: options.vocab_size };
        let (tokenizer, prompts) = mpsc::channel(places);
        let prompts = TokenizerThread { text: text.clone(), limits, jobs: prompts, state: state.clone() };
        start(format!("{} text", options.name), || prompts.run())?;
        let front = TokenizeQueue { tokenizer, ready, state: state.clone() };
        start(format!("{} front", options.name), || front.run(front_jobs))?;
        let queue = Arc::new(AdmissionQueue::new(options.queue_limit, slots));
        let engine = Self {
            name: options.name.clone(),
            jobs,
            queue: queue.clone(),
            batch_queue: Arc::new(Semaphore::new(BATCH_PLACES)),
            stream_buffer: options.stream_buffer,
            wake: wake.clone(),
            state: state.clone(),
            adapters: Arc::default(),
            compute_lock: compute_lock.clone(),
            threads,
        };
        let inbox = Inbox { jobs: worker_jobs, wake, compute_lock, queue };
        let worker = Worker::new((decoder, pool), text, options, inbox, state);
        thread.spawn(|| worker.run());
        Ok(engine)
    }

    /// Starts a generation if the queue has a place.
    pub fn generate(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        let place = self.adapter(&config).and_then(|adapter| match self.queue.enter() {
            Some(place) => Ok((place, adapter)),
            None => Err(Error::Overloaded { limit: self.queue.limit() }),
        });
        self.start_with(prompt, config, Mode::Generate, Instant::now(), place)
    }

    /// Starts a generation as soon as there is a place for it among those of batches.
    pub async fn generate_queued(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        let submitted = Instant::now();
        let place = self.batch_place(&config, submitted).await;
        self.start_with(prompt, config, Mode::Generate, submitted, place)
    }

    /// Starts to predict one token as soon as there is a place for it among those of batches. The
    /// receiver gets the logits if the config asks for them.
    pub async fn classify(
        &self,
        prompt: Prompt,
        config: GenerateConfig,
    ) -> (TokenStream, Option<oneshot::Receiver<Vec<f32>>>) {
        let submitted = Instant::now();
        let place = self.batch_place(&config, submitted).await;
        let (sender, receiver) = config.return_logits.then(oneshot::channel).unzip();
        (self.start_with(prompt, config, Mode::Classify(sender), submitted, place), receiver)
    }

    /// Starts to find out how likely the tokens of a prompt are as soon as there is a place for it among those of
    /// batches. They are what the stream gives.
    pub async fn score(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        let submitted = Instant::now();
        let place = self.batch_place(&config, submitted).await;
        self.start_with(prompt, config, Mode::Score, submitted, place)
    }

    /// A place among those of batches, and the adapter as it was before.
    async fn batch_place(&self, config: &GenerateConfig, submitted: Instant) -> Result<Admission> {
        let adapter = self.adapter(config)?;
        let place = Arc::clone(&self.batch_queue).acquire_owned();
        unless_over(config, submitted, async {
            Ok((place.await.map_err(|_| self.state.closed_error())?.into(), adapter))
        })
        .await
    }

    fn start_with(
        &self,
        prompt: Prompt,
        mut config: GenerateConfig,
        mode: Mode,
        submitted: Instant,
        admission: Result<Admission>,
    ) -> TokenStream {
        let (place, adapter) = match admission {
            Ok((place, adapter)) => (Some(place), adapter),
            Err(error) => return self.refuse(error),
        };
        let (sender, stream) = TokenStream::channel_with_wake(self.stream_buffer, &config, self.wake.clone());
        let deadline = config.deadline.and_then(|deadline| deadline.at(submitted));
        let span = tracing::debug_span!("request", model = self.name);
        let (state, in_flight) = (self.state.clone(), self.state.enter());
        let context = RequestContext { sender, submitted, deadline, place, span, state, in_flight };
        let stops = Arc::new(StopStrings::new(std::mem::take(&mut config.stop)));
        // A place in the queue is a place in the channel; only a closed one refuses.
        match self.jobs.try_send((prompt, Request { config, stops, mode, adapter, context })) {
            Ok(()) => stream,
            Err(_) => self.refuse(self.state.closed_error()),
        }
    }

    /// A stream that ended before it began.
    pub fn refuse(&self, error: Error) -> TokenStream {
        self.state.ended(&error.clone().into(), GenerateMetrics::default());
        TokenStream::failed(error)
    }

    /// What changes the model for such a request.
    pub fn adapter(&self, config: &GenerateConfig) -> Result<Option<LoadedAdapter>> {
        self.check_open()?;
        if config.base_model { Ok(None) } else { self.adapters.get(config.adapter.as_deref()) }
    }

    /// Whether requests are still taken.
    pub fn check_open(&self) -> Result<()> {
        if self.state.closing.is_cancelled() { Err(self.state.closed_error()) } else { Ok(()) }
    }

    /// Notes how an operation ended.
    pub fn record(&self, metrics: GenerateMetrics, error: Option<Error>) {
        self.state.record(metrics, error);
    }

    /// How the operation that ended last went.
    pub fn last(&self) -> (GenerateMetrics, Option<Error>) {
        self.state.last()
    }

    /// What the engine does now and has done.
    pub fn stats(&self) -> ModelStats {
        let mut stats = self.state.stats();
        stats.weight_bytes += self.adapters.bytes();
        stats
    }

    /// Ends everything and waits until the model's memory is free.
    pub async fn close(&self) {
        self.state.closing.cancel();
        self.batch_queue.close();
        self.adapters.close();
        self.state.closed.cancelled().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.state.closing.cancel();
    }
}

/// Does work unless the request is cancelled, or its deadline comes, before it is done.
pub async fn unless_over<T>(
    config: &GenerateConfig,
    submitted: Instant,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let deadline = config.deadline.and_then(|deadline| deadline.at(submitted));
    request_context::unless_over(config.cancellation.as_ref(), deadline, work).await
}

fn start(thread: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(thread).spawn(work).map(drop).map_err(not_started)
}

fn not_started(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal { reason: "a thread could not be started".into(), source: Some(Arc::new(error)) }
}
