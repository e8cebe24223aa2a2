//! The handle of an engine, and the start of its threads.

use std::{sync::Arc, thread};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Limits,
    compute_lock::ComputeLock,
    tokenizer_lanes::{PromptEncoder, TokenizerLanes},
    tokenizer_thread::TokenizerThread,
    worker::{Inbox, Worker},
};
use crate::{
    Error, GenerateConfig, Result,
    adapters::{Adapters, LoadedAdapter},
    decoder::Forward,
    kernels::{
        Isa,
        threads::{ThreadPool, physical_cores},
    },
    request::{AdmissionQueue, Executor, Frontend, FrontendOptions, ModelState, Request, RequestLimits},
    text::TextProcessor,
};

/// A request with the adapter that changes the model for it, if any.
pub type EngineRequest = Request<Option<LoadedAdapter>>;

/// The sizes of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Names the threads.
    pub name: String,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Tokens in the model's vocabulary.
    pub vocab_size: usize,
    /// Streams that may wait, beside the ones that run or could run at once.
    pub queue_limit: usize,
    /// Steps a stream buffers.
    pub stream_buffer: usize,
    /// Threads of a forward pass; `None` for one on each core.
    pub threads: Option<usize>,
    /// The instruction set of the sampler.
    pub isa: Isa,
    pub limits: Limits,
    /// Bytes of the weights, for the metrics.
    pub weight_bytes: usize,
    /// Bytes of a block of the KV cache, for the metrics.
    pub block_bytes: usize,
    /// Bytes of a sequence's recurrent state, for the metrics.
    pub state_bytes: usize,
}

/// The handle to a model's threads, which end when its [`Frontend`] is closed or dropped.
pub struct Engine {
    requests: mpsc::Sender<EngineRequest>,
    pub adapters: Arc<Adapters>,
    pub(super) state: Arc<ModelState>,
    /// Fires when the worker has freed everything.
    closed: CancellationToken,
    pub(super) compute_lock: Arc<ComputeLock>,
    /// Threads that compute together.
    pub(super) threads: usize,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Internal`] if a thread cannot be started.
    pub fn start(
        decoder: Box<dyn Forward>,
        text: Arc<TextProcessor>,
        options: EngineOptions,
    ) -> Result<Frontend<Self>> {
        let slots = options.limits.slots();
        let queue = Arc::new(AdmissionQueue::new(options.queue_limit, slots));
        let places = queue.places(slots);
        let (requests, tokenizer_inbox) = mpsc::channel(places);
        let (ready, worker_inbox) = mpsc::channel(places);
        let threads = options.threads.unwrap_or_else(physical_cores);
        let engine = Self {
            requests,
            adapters: Arc::default(),
            state: Arc::default(),
            closed: CancellationToken::new(),
            compute_lock: Arc::default(),
            threads,
        };
        let encoder =
            PromptEncoder { text: text.clone(), context_len: options.context_len, vocab_size: options.vocab_size };
        let lanes = TokenizerLanes::new(encoder, engine.state.clone(), places);
        let tokenizer = TokenizerThread { lanes, ready, state: engine.state.clone() };
        let tokenizer_thread = thread::Builder::new().name(format!("{} text", options.name));
        tokenizer_thread.spawn(|| tokenizer.run(tokenizer_inbox)).map_err(not_started)?;
        let wake = Arc::new(Notify::new());
        let frontend_options = FrontendOptions {
            name: options.name.clone(),
            stream_buffer: options.stream_buffer,
            limits: RequestLimits { vocab_size: Some(options.vocab_size) },
        };
        let inbox = Inbox {
            requests: worker_inbox,
            wake: wake.clone(),
            compute_lock: engine.compute_lock.clone(),
            queue: queue.clone(),
            state: engine.state.clone(),
            closed: engine.closed.clone(),
        };
        engine.start_worker(decoder, text, options, inbox)?;
        let state = engine.state.clone();
        Ok(Frontend::new(engine, frontend_options, queue, state, wake))
    }

    fn start_worker(
        &self,
        decoder: Box<dyn Forward>,
        text: Arc<TextProcessor>,
        options: EngineOptions,
        inbox: Inbox,
    ) -> Result<()> {
        let pool = ThreadPool::new(&options.name, self.threads).map_err(not_started)?;
        let name = format!("{} 0", options.name);
        // A pool of one thread: work that candle shares with rayon's threads stays on it.
        let thread = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(move |_| name.clone())
            .panic_handler(|panic| tracing::error!(error = %Error::panicked("a model's worker", panic.as_ref())))
            .build()
            .map_err(not_started)?;
        let worker = Worker::new((decoder, pool), text, options, inbox);
        thread.spawn(|| worker.run());
        Ok(())
    }

    /// Waits until the model's memory is free; the model is to be closing.
    pub async fn closed(&self) {
        self.adapters.close();
        self.closed.cancelled().await;
    }
}

impl Executor for Engine {
    type Adapter = Option<LoadedAdapter>;

    fn adapter(&self, config: &GenerateConfig) -> Result<Self::Adapter> {
        if config.base_model { Ok(None) } else { self.adapters.get(config.adapter.as_deref()) }
    }

    fn submit(&self, request: EngineRequest) -> Result<()> {
        // The channel has room for all requests that are admitted; it is closed once the tokenizer thread has ended.
        self.requests.try_send(request).map_err(|_| self.state.closed_error())
    }
}

pub fn not_started(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Internal { reason: "a thread could not be started".into(), source: Some(Arc::new(error)) }
}
