use std::{panic::AssertUnwindSafe, sync::Arc, thread};

use futures::{FutureExt, StreamExt, executor::block_on, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::state::ModelState;
use crate::{
    Error, Result,
    text::{Prompt, StopStrings, TextProcessor, budget::TokenizeBudget},
};

/// Bytes of a prompt no part of which takes long.
const SHORT_BYTES: usize = 32 << 10;
/// Threads beside that of short texts: one of short chats, and those of long prompts.
const LANES: usize = 3;

/// A prompt that is to become tokens, for as long as somebody waits for them.
pub struct TokenizeJob {
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

/// The thread that turns prompts into tokens, a millisecond of each in turn, so that a long one holds up no other.
/// Here they hold up neither the caller nor the worker. A template or an endless word is done at a stretch: chats and
/// long prompts have threads of their own, from the first one on.
pub struct TokenizerThread {
    pub text: Arc<TextProcessor>,
    pub limits: PromptLimits,
    pub jobs: mpsc::Receiver<TokenizeJob>,
    pub state: Arc<ModelState>,
}

impl TokenizerThread {
    /// Runs until there is nobody who could send a job.
    pub fn run(self) {
        let Self { text, limits, jobs, state } = self;
        let places = jobs.max_capacity();
        let serve = |jobs, elsewhere: &mut dyn FnMut(TokenizeJob) -> Option<TokenizeJob>| {
            let _alive = state.alive("tokenizer");
            block_on(serve(&text, &limits, jobs, elsewhere));
        };
        thread::scope(|scope| {
            let mut lanes = [const { None }; LANES];
            let start = || {
                let (lane, jobs) = mpsc::channel(places);
                let thread = thread::Builder::new().name("tokenizer".into());
                thread.spawn_scoped(scope, move || serve(jobs, &mut Some)).ok().map(|_| lane)
            };
            let mut count = 0;
            serve(jobs, &mut |job| {
                let Some(number) = lane_of(&job, count) else { return Some(job) };
                count += 1;
                let lane = &mut lanes[number];
                if lane.is_none() {
                    *lane = start();
                }
                pass_on(lane.as_ref(), job)
            });
            // They end when there is nobody who could send them a job.
            drop(lanes);
        });
    }
}

/// The lane of a job that may hold up others; long ones take turns.
fn lane_of(job: &TokenizeJob, count: usize) -> Option<usize> {
    let is_text = matches!(job.prompt, Prompt::Text(_) | Prompt::Ids(_));
    match job.prompt.size(&job.vars) > SHORT_BYTES {
        true => Some(1 + count % (LANES - 1)),
        false if is_text => None,
        false => Some(0),
    }
}

/// Gives a job to a lane, or back if that cannot take it.
fn pass_on(lane: Option<&mpsc::Sender<TokenizeJob>>, job: TokenizeJob) -> Option<TokenizeJob> {
    let Some(lane) = lane else { return Some(job) };
    match lane.try_send(job) {
        Ok(()) => None,
        Err(TrySendError::Full(job) | TrySendError::Closed(job)) => Some(job),
    }
}

/// Answers all jobs but those that `elsewhere` does not give back.
async fn serve(
    text: &TextProcessor,
    limits: &PromptLimits,
    mut jobs: mpsc::Receiver<TokenizeJob>,
    mut elsewhere: impl FnMut(TokenizeJob) -> Option<TokenizeJob>,
) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(job) => running.extend(elsewhere(job).map(|job| work(text, limits, job))),
                None => break,
            },
            Some(()) = running.next() => {}
        }
    }
    while running.next().await.is_some() {}
}

/// Answers a job, or gives it up as soon as nobody waits for it.
async fn work(text: &TextProcessor, limits: &PromptLimits, job: TokenizeJob) {
    let TokenizeJob { prompt, vars, stops, answered, mut reply } = job;
    let encode = async {
        stops.automaton();
        encode(text, limits, (&prompt, &vars), answered).await
    };
    let encoded = AssertUnwindSafe(encode).catch_unwind();
    let encoded = tokio::select! {
        biased;
        () = reply.closed() => return,
        encoded = encoded => encoded,
    };
    let encoded = encoded.unwrap_or_else(|panic| Err(Error::panicked("the tokenizer", panic.as_ref())));
    // Nobody may wait any more.
    let _ = reply.send(encoded);
}

async fn encode(
    text: &TextProcessor,
    limits: &PromptLimits,
    (prompt, vars): (&Prompt, &Map<String, Value>),
    answered: bool,
) -> Result<Vec<u32>> {
    let PromptLimits { context_len: limit, vocab_size } = *limits;
    let mut budget = TokenizeBudget::cooperative(limit - usize::from(answered), limit);
    let tokens = text.encode_within(prompt, vars, &mut budget).await?;
    if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
        return Err(Error::config("prompt", format!("token {id} is not in the model's vocabulary of {vocab_size}")));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Message,
        text::tests::{chatml, chatml_with},
    };

    const LIMITS: PromptLimits = PromptLimits { context_len: 1 << 30, vocab_size: usize::MAX };

    fn job(prompt: Prompt) -> (TokenizeJob, oneshot::Receiver<Result<Vec<u32>>>) {
        let (reply, encoded) = oneshot::channel();
        (TokenizeJob { prompt, vars: Map::new(), stops: Arc::default(), answered: true, reply }, encoded)
    }

    fn text(len: usize) -> Prompt {
        Prompt::Text("several words ".repeat(len / 14))
    }

    #[test]
    fn a_long_prompt_holds_up_no_short_one() {
        let processor = chatml();
        let (sender, jobs) = mpsc::channel(8);
        let (long, mut long_encoded) = job(text(8 << 20));
        let (other, mut other_encoded) = job(text(8 << 20));
        let (short, mut short_encoded) = job(text(100));
        for job in [long, other, short] {
            sender.try_send(job).ok().unwrap();
        }
        block_on(async {
            tokio::select! {
                () = serve(&processor, &LIMITS, jobs, Some) => panic!("it goes on as long as there may be jobs"),
                encoded = &mut short_encoded => assert!(encoded.unwrap().unwrap().len() > 10),
            }
        });
        assert!(long_encoded.try_recv().is_err() && other_encoded.try_recv().is_err(), "they take longer");
    }

    #[test]
    fn a_template_and_an_endless_word_hold_up_no_short_text() {
        let mut processor = chatml();
        let slow = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
        processor.template = chatml_with(slow);
        let (sender, jobs) = mpsc::channel(8);
        let state = Arc::default();
        let thread = TokenizerThread { text: Arc::new(processor), limits: LIMITS, jobs, state };
        let (chat, chat_encoded) = job(Prompt::Chat(vec![Message::user("a")]));
        let (word, word_encoded) = job(Prompt::Text("a".repeat(1 << 20)));
        let (short, short_encoded) = job(text(100));
        for job in [chat, word, short] {
            sender.try_send(job).ok().unwrap();
        }
        drop(sender);
        thread::scope(|scope| {
            scope.spawn(|| thread.run());
            let order = FuturesUnordered::new();
            for (name, encoded) in [("chat", chat_encoded), ("word", word_encoded), ("short", short_encoded)] {
                order.push(async move { (name, encoded.await.unwrap().is_ok()) });
            }
            let order: Vec<_> = block_on(order.collect());
            assert_eq!(order[0], ("short", true), "{order:?}");
            assert!(order.contains(&("chat", false)) && order.contains(&("word", true)), "{order:?}");
        });
    }

    #[test]
    fn what_nobody_waits_for_is_given_up() {
        let processor = chatml();
        let (sender, jobs) = mpsc::channel(8);
        let (long, encoded) = job(text(16 << 20));
        sender.try_send(long).ok().unwrap();
        drop(sender);
        block_on(async {
            let mut served = std::pin::pin!(serve(&processor, &LIMITS, jobs, Some));
            assert!(futures::poll!(&mut served).is_pending());
            drop(encoded);
            // All of it would take thousands of turns.
            let mut turns = 0;
            while futures::poll!(&mut served).is_pending() {
                turns += 1;
                assert!(turns < 10, "it goes on");
            }
        });
    }
}
