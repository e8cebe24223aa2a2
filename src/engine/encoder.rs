use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Result,
    text::{Prompt, StopStrings, TextProcessor},
};

/// A prompt that is to become tokens, for as long as somebody waits for them.
pub struct Job {
    pub prompt: Prompt,
    /// What the chat template is given.
    pub vars: Map<String, Value>,
    /// Made ready here.
    pub stops: Arc<StopStrings>,
    /// Whether an answer follows, which needs room for one token.
    pub answered: bool,
    pub reply: oneshot::Sender<Result<Vec<u32>>>,
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
pub struct Encoder {
    pub text: Arc<TextProcessor>,
    pub limits: PromptLimits,
    pub jobs: mpsc::Receiver<Job>,
}

impl Encoder {
    /// Runs until there is nobody who could send a job.
    pub fn run(mut self) {
        while let Some(job) = self.jobs.blocking_recv() {
            if !job.reply.is_closed() {
                let encoded = catch_unwind(AssertUnwindSafe(|| self.encode(&job)));
                let encoded = encoded.unwrap_or_else(|panic| Err(Error::panicked("the tokenizer", panic.as_ref())));
                // Nobody may wait any more.
                let _ = job.reply.send(encoded);
            }
        }
    }

    fn encode(&self, job: &Job) -> Result<Vec<u32>> {
        let PromptLimits { context_len: limit, vocab_size } = self.limits;
        let tokens = self.text.encode(&job.prompt, &job.vars)?;
        job.stops.automaton();
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Error::config(
                "prompt",
                format!("token {id} is not in the model's vocabulary of {vocab_size}"),
            ));
        }
        if tokens.len() > limit - usize::from(job.answered) {
            return Err(Error::PromptTooLong { tokens: tokens.len(), limit, prompt: None });
        }
        Ok(tokens)
    }
}
