//! The way of a call to an admitted request.

use std::{sync::Arc, time::Instant};

use tokio::sync::Notify;

use super::{
    AdmissionQueue, Executor, ModelState, Request, RequestContext, RequestLimits, Task, TaskKind, admission::Permit,
    unless_over,
};
use crate::{Error, GenerateConfig, GenerateMetrics, ModelStats, Result, TokenStream, text::Prompt};

/// The way from a call on a model's handle to an admitted request of its executor.
pub struct Frontend<E> {
    pub executor: E,
    options: FrontendOptions,
    queue: Arc<AdmissionQueue>,
    state: Arc<ModelState>,
    /// Rung when a reader has made room.
    wake: Arc<Notify>,
}

/// The settings of a [`Frontend`].
#[derive(Debug, Clone)]
pub struct FrontendOptions {
    /// The model's name, for tracing spans.
    pub name: String,
    /// Steps that a stream buffers.
    pub stream_buffer: usize,
    pub limits: RequestLimits,
}

/// A valid call that is not admitted yet.
pub struct Call<A> {
    pub prompt: Prompt,
    pub config: GenerateConfig,
    pub adapter: A,
    pub submitted: Instant,
}

impl<A> Call<A> {
    pub fn new(prompt: Prompt, config: GenerateConfig, adapter: A) -> Self {
        Self { prompt, config, adapter, submitted: Instant::now() }
    }

    fn deadline(&self) -> Option<Instant> {
        self.config.deadline.and_then(|deadline| deadline.at(self.submitted))
    }
}

impl<E: Executor> Frontend<E> {
    /// `queue`, `state` and `wake` are shared with the executor.
    pub fn new(
        executor: E,
        options: FrontendOptions,
        queue: Arc<AdmissionQueue>,
        state: Arc<ModelState>,
        wake: Arc<Notify>,
    ) -> Self {
        Self { executor, options, queue, state, wake }
    }

    /// Starts a generation, or refuses it at once if the queue is full.
    pub fn generate(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        let started = self.check(&config, TaskKind::Generate).and_then(|adapter| {
            let call = Call::new(prompt, config, adapter);
            let permit = self.queue.enter()?;
            self.start(call, Task::Generate, permit)
        });
        started.unwrap_or_else(|error| self.refuse(error))
    }

    /// Starts a request of a batch as soon as there is a permit for it.
    pub async fn start_queued(&self, call: Call<E::Adapter>, task: Task) -> TokenStream {
        let permit = async { self.queue.enter_batch().await.ok_or_else(|| self.state.closed_error()) };
        let permit = unless_over(call.config.cancellation.as_ref(), call.deadline(), permit).await;
        permit.and_then(|permit| self.start(call, task, permit)).unwrap_or_else(|error| self.refuse(error))
    }

    fn start(&self, call: Call<E::Adapter>, task: Task, permit: Permit) -> Result<TokenStream> {
        let buffer = self.options.stream_buffer;
        let (sender, stream) = TokenStream::channel_with_wake(buffer, &call.config, self.wake.clone());
        let context = RequestContext {
            sender,
            submitted: call.submitted,
            deadline: call.deadline(),
            span: tracing::debug_span!("request", model = self.options.name),
            state: self.state.clone(),
            permit,
            in_flight: self.state.enter(),
        };
        let Call { prompt, config, adapter, .. } = call;
        self.executor.submit(Request { prompt, config, task, adapter, context })?;
        Ok(stream)
    }

    /// Refuses a config that this model cannot honor, and looks its adapter up.
    pub fn check(&self, config: &GenerateConfig, kind: TaskKind) -> Result<E::Adapter> {
        config.validate()?;
        self.check_open()?;
        let adapter = self.executor.adapter(config)?;
        self.options.limits.check(config, kind)?;
        Ok(adapter)
    }

    /// A stream that has ended with `error`.
    fn refuse(&self, error: Error) -> TokenStream {
        self.state.ended(&error.clone().into(), GenerateMetrics::default());
        TokenStream::failed(error)
    }

    /// Whether requests are still taken.
    pub fn check_open(&self) -> Result<()> {
        self.state.check_open()
    }

    /// Remembers how a call of many requests ended.
    pub fn record(&self, metrics: GenerateMetrics, error: Option<Error>) {
        self.state.record(metrics, error);
    }

    /// Metrics and error of the operation that ended last.
    pub fn last(&self) -> (GenerateMetrics, Option<Error>) {
        self.state.last()
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> ModelStats {
        self.state.stats()
    }

    /// The abilities that configs are checked against.
    pub fn limits(&self) -> &RequestLimits {
        &self.options.limits
    }

    /// Ends all requests: the executor learns of it by [`ModelState::closing`].
    pub fn close(&self) {
        self.state.closing.cancel();
        self.queue.close();
    }
}

impl<E> Drop for Frontend<E> {
    fn drop(&mut self) {
        self.state.closing.cancel();
    }
}
