//! The thread between callers and worker, which tokenizes prompts.

use std::{mem::take, panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt, StreamExt, executor::block_on, stream::FuturesUnordered};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    EngineRequest,
    scheduler::SequenceId,
    token_mask::TokenMask,
    tokenizer_lanes::{TokenizeJob, TokenizerLanes},
};
use crate::{
    GenerateConfig,
    adapters::LoadedAdapter,
    request::{ModelState, Request, RequestContext, Task},
    text::StopStrings,
};

/// A request whose prompt is tokenized.
pub struct TokenizedRequest {
    /// Greater than the ids of all requests that came before it.
    pub id: SequenceId,
    pub tokens: Vec<u32>,
    pub config: GenerateConfig,
    pub stops: Arc<StopStrings>,
    pub task: Task,
    /// A constraint on the answer.
    pub mask: Option<Box<dyn TokenMask>>,
    pub adapter: Option<LoadedAdapter>,
    pub context: RequestContext,
}

/// The thread between callers and worker: a request waits here while its prompt is tokenized. One that is cancelled,
/// or whose deadline passes, ends at that moment, however long the tokenizer still takes.
pub struct TokenizerThread {
    pub lanes: TokenizerLanes,
    pub ready: mpsc::Sender<TokenizedRequest>,
    pub state: Arc<ModelState>,
}

impl TokenizerThread {
    /// Runs until the model closes.
    pub fn run(self, requests: mpsc::Receiver<EngineRequest>) {
        let _alive = self.state.alive("tokenizer");
        block_on(self.serve(requests));
    }

    async fn serve(&self, mut requests: mpsc::Receiver<EngineRequest>) {
        let (mut waiting, mut next_id) = (FuturesUnordered::new(), 0);
        loop {
            tokio::select! {
                biased;
                () = self.state.closing.cancelled() => break,
                Some(request) = requests.recv() => {
                    // After a panic the request is dropped, which ends its stream with an error.
                    waiting.push(AssertUnwindSafe(self.prepare(next_id, request)).catch_unwind());
                    next_id += 1;
                }
                Some(_) = waiting.next() => {}
            }
        }
        requests.close();
        while let Ok(request) = requests.try_recv() {
            request.context.fail(self.state.closed_error());
        }
        while waiting.next().await.is_some() {}
    }

    /// Hands a request to the worker once its prompt is tokenized, or ends it.
    async fn prepare(&self, id: SequenceId, request: EngineRequest) {
        let Request { prompt, mut config, task, adapter, context } = request;
        let vars = take(&mut config.template_vars);
        let stop_bytes = config.stop.iter().map(String::len).sum();
        let stops = Arc::new(StopStrings::new(take(&mut config.stop)));
        let answered = matches!(task, Task::Generate);
        let job = TokenizeJob { prompt, vars, stops: stops.clone(), stop_bytes, answered };
        match context.unless_over(self.lanes.encode(job)).await {
            Ok(tokens) => {
                self.pass_on(TokenizedRequest { id, tokens, config, stops, task, mask: None, adapter, context });
            }
            Err(error) => context.fail(error),
        }
    }

    fn pass_on(&self, request: TokenizedRequest) {
        // The channel has room for all requests that are admitted; it is closed once the worker has ended.
        if let Err(TrySendError::Full(request) | TrySendError::Closed(request)) = self.ready.try_send(request) {
            request.context.fail(self.state.closed_error());
        }
    }
}
