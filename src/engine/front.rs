use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use futures::executor::block_on;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::{Mode, Request};
use crate::{Error, Result, text::TextProcessor};

/// A request whose prompt has become tokens.
pub struct Prepared {
    pub request: Request,
    pub tokens: Vec<u32>,
}

/// What a prompt may be.
pub struct PromptLimits {
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Tokens the model knows.
    pub vocab_size: usize,
}

/// The thread that turns prompts into tokens, in order. Templates and long prompts take their time;
/// here they hold up neither the caller nor the worker.
pub struct Front {
    pub text: Arc<TextProcessor>,
    pub limits: PromptLimits,
    pub jobs: mpsc::Receiver<Request>,
    pub ready: mpsc::Sender<Prepared>,
    pub closing: CancellationToken,
}

impl Front {
    /// Runs until the model closes.
    pub fn run(mut self) {
        while let Some(request) = block_on(self.next()) {
            if let Some(error) = request.ticket.expired(Instant::now()) {
                request.ticket.fail(error);
                continue;
            }
            let encoded = catch_unwind(AssertUnwindSafe(|| self.encode(&request)));
            match encoded.unwrap_or_else(|panic| Err(Error::panicked("the tokenizer", panic.as_ref()))) {
                Ok(tokens) => self.pass_on(Prepared { request, tokens }),
                Err(error) => request.ticket.fail(error),
            }
        }
        self.jobs.close();
        while let Ok(request) = self.jobs.try_recv() {
            request.ticket.fail(Error::Closed);
        }
    }

    async fn next(&mut self) -> Option<Request> {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            job = self.jobs.recv() => job,
        }
    }

    fn pass_on(&self, prepared: Prepared) {
        // The worker has room for all that there are places for, until it closes.
        if let Err(TrySendError::Full(prepared) | TrySendError::Closed(prepared)) = self.ready.try_send(prepared) {
            prepared.request.ticket.fail(Error::Closed);
        }
    }

    fn encode(&self, request: &Request) -> Result<Vec<u32>> {
        let PromptLimits { context_len: limit, vocab_size } = self.limits;
        let tokens = self.text.encode(&request.prompt, &request.config.template_vars)?;
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Error::config(
                "prompt",
                format!("token {id} is not in the model's vocabulary of {vocab_size}"),
            ));
        }
        // A prediction needs no room after the prompt, an answer needs room for one token.
        let room = match request.mode {
            Mode::Generate => limit - 1,
            Mode::Classify(_) | Mode::Score => limit,
        };
        if tokens.len() > room {
            return Err(Error::PromptTooLong { tokens: tokens.len(), limit });
        }
        Ok(tokens)
    }
}
