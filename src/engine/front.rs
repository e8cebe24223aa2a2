use futures::executor::block_on;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Request;
use crate::{Error, GenerateMetrics, Result, text::TextProcessor};

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

/// Turns prompts into tokens, in order, until the model closes. Templates and long prompts take
/// their time; here they hold up neither the caller nor the worker.
pub fn run(
    text: &TextProcessor,
    limits: &PromptLimits,
    mut jobs: mpsc::Receiver<Request>,
    ready: &mpsc::Sender<Prepared>,
    closing: &CancellationToken,
) {
    let next = async |jobs: &mut mpsc::Receiver<Request>| {
        tokio::select! {
            biased;
            () = closing.cancelled() => None,
            job = jobs.recv() => job,
        }
    };
    while let Some(request) = block_on(next(&mut jobs)) {
        if request.sender.cancellation().is_cancelled() {
            request.sender.fail(Error::Cancelled, GenerateMetrics::default());
            continue;
        }
        match encode(text, limits, &request) {
            // The worker takes all it gets until it closes, which ends the request.
            Ok(tokens) => drop(ready.try_send(Prepared { request, tokens })),
            Err(error) => request.sender.fail(error, GenerateMetrics::default()),
        }
    }
}

fn encode(text: &TextProcessor, limits: &PromptLimits, request: &Request) -> Result<Vec<u32>> {
    let tokens = text.encode(&request.prompt)?;
    if let Some(id) = tokens.iter().find(|id| **id as usize >= limits.vocab_size) {
        let reason = format!("token {id} is not in the model's vocabulary of {}", limits.vocab_size);
        return Err(Error::config("prompt", reason));
    }
    let limit = limits.context_len;
    // A prediction needs no room after the prompt, an answer needs room for one token.
    let room = match request.mode {
        super::Mode::Generate => limit - 1,
        super::Mode::Classify(_) => limit,
    };
    if tokens.len() > room {
        return Err(Error::PromptTooLong { tokens: tokens.len(), limit });
    }
    Ok(tokens)
}
