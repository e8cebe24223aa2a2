use std::{mem::take, panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt, StreamExt, executor::block_on, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::{Mode, Request, scheduler::SequenceId, state::ModelState, tokenizer_thread::TokenizeJob};
use crate::{
    Result,
    text::{Prompt, StopStrings},
};

/// A request whose prompt has become tokens.
pub struct TokenizedRequest {
    /// Greater than those of all that came before it.
    pub id: SequenceId,
    pub request: Request,
    pub tokens: Vec<u32>,
}

/// Where requests wait until their prompts are tokens. One that is cancelled, or whose deadline comes, ends then,
/// whatever the tokenizer is at.
pub struct TokenizeQueue {
    pub tokenizer: mpsc::Sender<TokenizeJob>,
    pub ready: mpsc::Sender<TokenizedRequest>,
    pub state: Arc<ModelState>,
}

impl TokenizeQueue {
    /// Runs until the model closes.
    pub fn run(self, jobs: mpsc::Receiver<(Prompt, Request)>) {
        let _alive = self.state.alive("queue");
        block_on(self.serve(jobs));
    }

    async fn serve(&self, mut jobs: mpsc::Receiver<(Prompt, Request)>) {
        let (mut waiting, mut next_id) = (FuturesUnordered::new(), 0);
        loop {
            tokio::select! {
                biased;
                () = self.state.closing.cancelled() => break,
                Some(_) = waiting.next() => {}
                Some((prompt, request)) = jobs.recv() => {
                    // A panic is the end of its own request: what it drops tells so.
                    waiting.push(AssertUnwindSafe(self.prepare(next_id, prompt, request)).catch_unwind());
                    next_id += 1;
                }
            }
        }
        jobs.close();
        while let Ok((_, request)) = jobs.try_recv() {
            request.context.fail(self.state.closed_error());
        }
        while waiting.next().await.is_some() {}
    }

    /// Sees to it that a request goes on or ends.
    async fn prepare(&self, id: SequenceId, prompt: Prompt, mut request: Request) {
        let vars = take(&mut request.config.template_vars);
        let answered = matches!(request.mode, Mode::Generate);
        let stops = request.stops.clone();
        match request.context.unless_expired(self.encode(prompt, vars, stops, answered)).await {
            Ok(tokens) => self.pass_on(TokenizedRequest { id, request, tokens }),
            Err(error) => request.context.fail(error),
        }
    }

    async fn encode(
        &self,
        prompt: Prompt,
        vars: Map<String, Value>,
        stops: Arc<StopStrings>,
        answered: bool,
    ) -> Result<Vec<u32>> {
        let (reply, encoded) = oneshot::channel();
        let closed = |_| self.state.closed_error();
        let encoded = async {
            let job = TokenizeJob { prompt, vars, stops, answered, reply };
            self.tokenizer.send(job).await.map_err(|_| self.state.closed_error())?;
            encoded.await.map_err(closed)?
        };
        tokio::select! {
            biased;
            () = self.state.closing.cancelled() => Err(self.state.closed_error()),
            encoded = encoded => encoded,
        }
    }

    fn pass_on(&self, prepared: TokenizedRequest) {
        // The worker has room for all that there are places for, until it closes.
        if let Err(TrySendError::Full(prepared) | TrySendError::Closed(prepared)) = self.ready.try_send(prepared) {
            prepared.request.context.fail(self.state.closed_error());
        }
    }
}
