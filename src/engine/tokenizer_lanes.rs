//! Fair tokenizing: no prompt holds up another.

use std::{
    cell::{Cell, RefCell},
    panic::AssertUnwindSafe,
    sync::Arc,
    thread,
};

use futures::{FutureExt, StreamExt, executor::block_on, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    Error, Result,
    request::ModelState,
    text::{Prompt, StopStrings, TextProcessor, budget::TokenizeBudget},
};

/// Bytes of a prompt and its stop strings, no part of which takes long.
const SHORT_BYTES: usize = 32 << 10;
/// Threads beside the one of short texts: one of short chats, the others of long prompts.
const LANES: usize = 3;

/// A prompt that is to be tokenized.
pub struct TokenizeJob {
    pub prompt: Prompt,
    /// Variables of the chat template.
    pub vars: Map<String, Value>,
    /// Compiled here, beside the tokenizing.
    pub stops: Arc<StopStrings>,
    /// Bytes of the stop strings.
    pub stop_bytes: usize,
    /// Whether an answer follows, which needs room for one token.
    pub answered: bool,
}

/// A job in a lane, given up as soon as nobody waits for the reply.
type LaneJob = (TokenizeJob, oneshot::Sender<Result<Vec<u32>>>);

/// A tokenizer, and the bounds of prompts.
pub struct PromptEncoder {
    pub text: Arc<TextProcessor>,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Tokens in the model's vocabulary.
    pub vocab_size: usize,
}

/// Tokenizing that lets no prompt hold up another: each is done in steps of about a millisecond, in turn. A chat
/// template and an endless word are steps that may take long, so short chats have a thread of their own, and so have
/// long prompts. These threads start with their first job.
pub struct TokenizerLanes {
    encoder: Arc<PromptEncoder>,
    state: Arc<ModelState>,
    /// Jobs that may wait in a lane.
    places: usize,
    lanes: RefCell<[Option<mpsc::Sender<LaneJob>>; LANES]>,
    /// Jobs of lanes so far: long ones take turns.
    count: Cell<usize>,
}

impl TokenizerLanes {
    pub fn new(encoder: PromptEncoder, state: Arc<ModelState>, places: usize) -> Self {
        let (lanes, count) = Default::default();
        Self { encoder: Arc::new(encoder), state, places, lanes, count }
    }

    /// The token ids of a prompt. Short texts are tokenized on the calling thread, in turn with other futures of it.
    ///
    /// # Cancel safety
    /// Dropping the future ends the work within one step.
    pub async fn encode(&self, job: TokenizeJob) -> Result<Vec<u32>> {
        let (reply, encoded) = oneshot::channel();
        match self.pass_on((job, reply)) {
            None => encoded.await.map_err(|_| self.state.closed_error())?,
            Some((job, _)) => self.encoder.encode(job).await,
        }
    }

    /// Gives a job that may take long to its lane. Returns a job that is to be done here.
    fn pass_on(&self, job: LaneJob) -> Option<LaneJob> {
        let Some(number) = self.lane_of(&job.0) else { return Some(job) };
        let mut lanes = self.lanes.borrow_mut();
        let lane = &mut lanes[number];
        if lane.is_none() {
            *lane = self.start_lane();
        }
        let Some(lane) = lane else { return Some(job) };
        match lane.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job) | TrySendError::Closed(job)) => Some(job),
        }
    }

    fn lane_of(&self, job: &TokenizeJob) -> Option<usize> {
        let is_text = matches!(job.prompt, Prompt::Text(_) | Prompt::Ids(_));
        let is_long = job.prompt.size(&job.vars).saturating_add(job.stop_bytes) > SHORT_BYTES;
        if is_text && !is_long {
            return None;
        }
        let count = self.count.replace(self.count.get() + 1);
        Some(if is_long { 1 + count % (LANES - 1) } else { 0 })
    }

    /// `None` if the thread cannot be started.
    fn start_lane(&self) -> Option<mpsc::Sender<LaneJob>> {
        let (lane, jobs) = mpsc::channel(self.places);
        let (encoder, state) = (self.encoder.clone(), self.state.clone());
        let run = move || {
            let _alive = state.alive("tokenizer");
            block_on(serve(&encoder, jobs));
        };
        thread::Builder::new().name("tokenizer".into()).spawn(run).ok().map(|_| lane)
    }
}

/// Does the jobs of a lane until no more can come.
async fn serve(encoder: &PromptEncoder, mut jobs: mpsc::Receiver<LaneJob>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(job) => running.push(work(encoder, job)),
                None => break,
            },
            Some(()) = running.next() => {}
        }
    }
    while running.next().await.is_some() {}
}

async fn work(encoder: &PromptEncoder, (job, mut reply): LaneJob) {
    let encoded = tokio::select! {
        biased;
        () = reply.closed() => return,
        encoded = encoder.encode(job) => encoded,
    };
    // The request may have ended meanwhile.
    let _ = reply.send(encoded);
}

impl PromptEncoder {
    /// A panic of the tokenizer is an error.
    async fn encode(&self, job: TokenizeJob) -> Result<Vec<u32>> {
        let encode = async {
            job.stops.automaton();
            let mut budget =
                TokenizeBudget::cooperative(self.context_len - usize::from(job.answered), self.context_len);
            let tokens = self.text.encode_within(&job.prompt, &job.vars, &mut budget).await?;
            self.check(&tokens)?;
            Ok(tokens)
        };
        let encoded = AssertUnwindSafe(encode).catch_unwind().await;
        encoded.unwrap_or_else(|panic| Err(Error::panicked("the tokenizer", panic.as_ref())))
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => {
                let reason = format!("token {id} is not in the model's vocabulary of {}", self.vocab_size);
                Err(Error::config("prompt", reason))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Message,
        text::tests::{chatml, chatml_with},
    };

    fn encoder(text: TextProcessor) -> PromptEncoder {
        PromptEncoder { text: Arc::new(text), context_len: 1 << 30, vocab_size: usize::MAX }
    }

    fn job(prompt: Prompt) -> TokenizeJob {
        TokenizeJob { prompt, vars: Map::new(), stops: Arc::default(), stop_bytes: 0, answered: true }
    }

    fn text(len: usize) -> TokenizeJob {
        job(Prompt::Text("several words ".repeat(len / 14)))
    }

    #[test]
    fn a_long_prompt_holds_up_no_short_one() {
        let encoder = encoder(chatml());
        let encode = |name, len| encoder.encode(text(len)).map(move |encoded| (name, encoded.unwrap().len()));
        let mut order: FuturesUnordered<_> =
            [encode("long", 8 << 20), encode("other", 8 << 20), encode("short", 100)].into_iter().collect();
        let first = block_on(order.next()).unwrap();
        assert!(first.0 == "short" && first.1 > 10, "{first:?}");
    }

    #[test]
    fn a_template_and_an_endless_word_hold_up_no_short_text() {
        let mut processor = chatml();
        let slow = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
        processor.template = chatml_with(slow);
        let lanes = TokenizerLanes::new(encoder(processor), Arc::default(), 8);
        let encode = |name, job| lanes.encode(job).map(move |encoded| (name, encoded.is_ok()));
        let order: FuturesUnordered<_> = [
            encode("chat", job(Prompt::Chat(vec![Message::user("a")]))),
            encode("word", job(Prompt::Text("a".repeat(1 << 20)))),
            encode("short", text(100)),
        ]
        .into_iter()
        .collect();
        let order: Vec<_> = block_on(order.collect());
        assert_eq!(order[0], ("short", true), "{order:?}");
        assert!(order.contains(&("chat", false)) && order.contains(&("word", true)), "{order:?}");
    }

    #[test]
    fn a_job_that_nobody_waits_for_is_given_up() {
        let encoder = encoder(chatml());
        let (sender, jobs) = mpsc::channel(8);
        let (reply, encoded) = oneshot::channel();
        sender.try_send((text(16 << 20), reply)).ok().unwrap();
        drop(sender);
        block_on(async {
            let mut served = std::pin::pin!(serve(&encoder, jobs));
            assert!(futures::poll!(&mut served).is_pending());
            drop(encoded);
            // All of it would take thousands of steps.
            let mut steps = 0;
            while futures::poll!(&mut served).is_pending() {
                steps += 1;
                assert!(steps < 10, "it goes on");
            }
        });
    }
}
