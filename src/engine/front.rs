use std::{mem::take, sync::Arc};

use futures::{StreamExt, executor::block_on, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::sync::CancellationToken;

use super::{Mode, Request, encoder::Job, scheduler::SequenceId};
use crate::{
    Error, Result,
    text::{Prompt, StopStrings},
};

/// A request whose prompt has become tokens.
pub struct Prepared {
    /// Greater than those of all that came before it.
    pub id: SequenceId,
    pub request: Request,
    pub tokens: Vec<u32>,
}

/// Where requests wait until their prompts are tokens. One that is cancelled, or whose deadline comes, ends then,
/// however long the prompts before it take.
pub struct Front {
    /// Takes one prompt beside that which it encodes, so that all others wait here.
    pub encoder: mpsc::Sender<Job>,
    pub ready: mpsc::Sender<Prepared>,
    pub closing: CancellationToken,
}

impl Front {
    /// Runs until the model closes.
    pub fn run(self, jobs: mpsc::Receiver<(Prompt, Request)>) {
        block_on(self.serve(jobs));
    }

    async fn serve(&self, mut jobs: mpsc::Receiver<(Prompt, Request)>) {
        let (mut waiting, mut next_id) = (FuturesUnordered::new(), 0);
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                Some(()) = waiting.next() => {}
                Some((prompt, request)) = jobs.recv() => {
                    waiting.push(self.prepare(next_id, prompt, request));
                    next_id += 1;
                }
            }
        }
        jobs.close();
        while let Ok((_, request)) = jobs.try_recv() {
            request.ticket.fail(Error::Closed);
        }
        while waiting.next().await.is_some() {}
    }

    /// Sees to it that a request goes on or ends.
    async fn prepare(&self, id: SequenceId, prompt: Prompt, mut request: Request) {
        let vars = take(&mut request.config.template_vars);
        let answered = matches!(request.mode, Mode::Generate);
        let stops = request.stops.clone();
        match request.ticket.unless_expired(self.encode(prompt, vars, stops, answered)).await {
            Ok(tokens) => self.pass_on(Prepared { id, request, tokens }),
            Err(error) => request.ticket.fail(error),
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
        let encoded = async {
            self.encoder.send(Job { prompt, vars, stops, answered, reply }).await.map_err(|_| Error::Closed)?;
            encoded.await.unwrap_or(Err(Error::Closed))
        };
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(Error::Closed),
            encoded = encoded => encoded,
        }
    }

    fn pass_on(&self, prepared: Prepared) {
        // The worker has room for all that there are places for, until it closes.
        if let Err(TrySendError::Full(prepared) | TrySendError::Closed(prepared)) = self.ready.try_send(prepared) {
            prepared.request.ticket.fail(Error::Closed);
        }
    }
}
