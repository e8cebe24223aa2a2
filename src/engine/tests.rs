//! The worker with a decoder of the tests, and token masks.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc as std_mpsc},
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt, executor::block_on};
use tokio::sync::mpsc;

use super::{
    handle::EngineOptions,
    scheduler::Limits,
    token_mask::{TokenMask, TokenSet},
    tokenizer_thread::TokenizedRequest,
    worker::{Inbox, Worker},
};
use crate::{
    Error, GenerateConfig, GenerateMetrics, Result, TokenStream,
    decoder::{BLOCK_TOKENS, Batch, Forward, Outputs},
    kernels::{Isa, threads::ThreadPool},
    request::{AdmissionQueue, ModelState, RequestContext, Task},
    text::tests::chatml,
};

/// A decoder whose logits depend on the last two tokens, as its cache has them, and on the position.
struct PairDecoder {
    vocab_size: usize,
    cached: HashMap<usize, u32>,
    on_pass: Box<dyn FnMut() + Send>,
}

impl Forward for PairDecoder {
    fn forward(&mut self, batch: &Batch) -> Result<Outputs> {
        (self.on_pass)();
        let mut outputs = Outputs::default();
        for span in &batch.spans {
            for row in span.start..span.start + span.len {
                let position = batch.positions[row] as usize;
                self.cached.insert(span.slot(position, BLOCK_TOKENS), batch.tokens[row]);
                if batch.sampled.contains(&(row as u32)) {
                    let pair =
                        [position.saturating_sub(1), position].map(|at| self.cached[&span.slot(at, BLOCK_TOKENS)]);
                    outputs.logits.extend((0..self.vocab_size as u32).map(|id| logit(pair, position, id)));
                }
            }
        }
        Ok(outputs)
    }
}

/// Answers repeat themselves, but not at every 20th position.
fn logit([before, last]: [u32; 2], position: usize, id: u32) -> f32 {
    let context = last % 4 * 31 + before % 4 * 17 + if position.is_multiple_of(20) { 7 } else { 0 };
    (context.wrapping_add(id.wrapping_mul(2_654_435_761)) % 1009) as f32
}

/// Allows the ids below 100 that have the same remainder by 3 as the length of the answer.
#[derive(Clone)]
struct InTurn {
    len: usize,
    /// Told when a set is computed.
    computed: Option<std_mpsc::Sender<()>>,
}

impl InTurn {
    fn has(len: usize, id: u32) -> bool {
        id < 100 && id as usize % 3 == len % 3
    }

    fn set(len: usize) -> TokenSet {
        (0..100).filter(|id| Self::has(len, *id)).collect()
    }
}

impl TokenMask for InTurn {
    fn allowed(&mut self, draft: &[u32]) -> Result<Vec<TokenSet>> {
        self.computed.iter().for_each(|computed| computed.send(()).unwrap());
        let right = (self.len..).zip(draft).take_while(|(len, id)| Self::has(*len, **id)).count();
        Ok((0..=right).map(|drafted| Self::set(self.len + drafted)).collect())
    }

    fn observe(&mut self, tokens: &[u32]) -> Result<()> {
        assert!((self.len..).zip(tokens).all(|(len, id)| Self::has(len, *id)));
        self.len += tokens.len();
        Ok(())
    }
}

fn in_turn() -> Box<dyn TokenMask> {
    Box::new(InTurn { len: 0, computed: None })
}

struct Panics;

impl TokenMask for Panics {
    fn allowed(&mut self, _: &[u32]) -> Result<Vec<TokenSet>> {
        panic!("as a test wants it")
    }

    fn observe(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
}

/// A worker on a thread of its own, which gets requests that are tokenized.
struct TestWorker {
    requests: Option<mpsc::Sender<TokenizedRequest>>,
    state: Arc<ModelState>,
    queue: Arc<AdmissionQueue>,

    next_id: u64,
    thread: Option<thread::JoinHandle<()>>,
}

impl TestWorker {
    fn start(on_pass: impl FnMut() + Send + 'static) -> Self {
        let text = Arc::new(chatml());
        let (requests, inbox) = mpsc::channel(64);
        let (state, queue) = (Arc::<ModelState>::default(), Arc::new(AdmissionQueue::new(64, 8)));
        let vocab_size = text.tokenizer.vocab_size();
        let max_batched_tokens = 16;
        let limits = Limits {
            max_running: 8,
            max_batched_tokens,
            cache_blocks: 64,
            state_slots: 0,
            block_tokens: BLOCK_TOKENS,
            max_idle_blocks: 64,
        };
        let options = EngineOptions {
            name: "test".into(),
            context_len: 256,
            vocab_size,
            queue_limit: 64,
            stream_buffer: 256,
            threads: Some(2),
            isa: Isa::detect(),
            limits,
            weight_bytes: 0,
            block_bytes: 1,
            state_bytes: 0,
        };
        let inbox = Inbox {
            requests: inbox,
            wake: Arc::default(),
            compute_lock: Arc::default(),
            queue: queue.clone(),
            state: state.clone(),
            closed: Default::default(),
        };
        let decoder = PairDecoder { vocab_size, cached: HashMap::new(), on_pass: Box::new(on_pass) };

        let thread = thread::spawn(move || {
            let pool = ThreadPool::new("test", 2).unwrap();
            Worker::new((Box::new(decoder), pool), text, options, inbox).run();
        });
        Self { requests: Some(requests), state, queue, next_id: 0, thread: Some(thread) }
    }

    fn submit(&mut self, prompt: &[u32], config: GenerateConfig, mask: Option<Box<dyn TokenMask>>) -> TokenStream {
        let config = config.ignore_eos(true);
        let (sender, stream) = TokenStream::channel(256, &config);
        let context = RequestContext {
            sender,
            submitted: Instant::now(),
            deadline: None,
            span: tracing::Span::none(),
            state: self.state.clone(),
            permit: self.queue.enter().unwrap(),
            in_flight: self.state.enter(),
        };
        let (id, tokens, stops, task, adapter) = (self.next_id, prompt.to_vec(), Arc::default(), Task::Generate, None);
        self.next_id += 1;
        let request = TokenizedRequest { id, tokens, config, stops, task, mask, adapter, context };
        self.requests.as_ref().unwrap().try_send(request).ok().unwrap();
        stream
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.state.closing.cancel();
        self.requests.take();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read(mut stream: TokenStream) -> Result<(Vec<u32>, GenerateMetrics)> {
    let ids = block_on(stream.by_ref().map(|token| token.id).collect());
    stream.err().cloned().map_or(Ok((ids, stream.metrics())), Err)
}

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

fn config() -> GenerateConfig {
    GenerateConfig::new().max_tokens(60)
}

#[test]
fn a_masked_answer_is_the_same_alone_among_others_and_with_drafts() {
    let alone = read(TestWorker::start(|| {}).submit(&PROMPT, config(), Some(in_turn()))).unwrap().0;
    assert_eq!(alone.len(), 60);
    assert!(alone.iter().enumerate().all(|(len, id)| InTurn::has(len, *id)), "{alone:?}");
    // Passes of the same time whatever is in them, so that drafts pay.
    let steady = || thread::sleep(Duration::from_millis(1));
    let (drafted, metrics) =
        read(TestWorker::start(steady).submit(&PROMPT, config().prompt_lookup(8), Some(in_turn()))).unwrap();
    assert_eq!(drafted, alone);
    assert!(metrics.accepted_tokens > 0 && metrics.accepted_tokens < metrics.drafted_tokens, "{metrics:?}");
    let mut worker = TestWorker::start(|| {});
    let unmasked = worker.submit(&PROMPT, config(), None);
    let other = worker.submit(&[7, 7], config().temperature(1.0).seed(3), Some(in_turn()));
    let masked = worker.submit(&PROMPT, config().prompt_lookup(3), Some(in_turn()));
    let failing = worker.submit(&PROMPT, config(), Some(Box::new(Panics)));
    assert_eq!(read(masked).unwrap().0, alone);
    assert_ne!(read(unmasked).unwrap().0, alone);
    assert!(read(other).unwrap().0.iter().enumerate().all(|(len, id)| InTurn::has(len, *id)));
    assert!(matches!(read(failing), Err(Error::Internal { reason, .. }) if reason.contains("as a test wants it")));
}

#[test]
fn masks_are_computed_beside_the_forward_pass() {
    let (computed, is_computed) = std_mpsc::channel();
    // A pass ends only when the mask of its row is there.
    let wait = move || is_computed.recv_timeout(Duration::from_secs(10)).expect("a mask");
    let mut worker = TestWorker::start(wait);
    let mask = InTurn { len: 0, computed: Some(computed) };
    assert_eq!(read(worker.submit(&PROMPT, config(), Some(Box::new(mask)))).unwrap().0.len(), 60);
}

#[test]
fn a_mask_that_leaves_no_token_ends_its_request() {
    struct Nothing;
    impl TokenMask for Nothing {
        fn allowed(&mut self, _: &[u32]) -> Result<Vec<TokenSet>> {
            Ok(vec![TokenSet::from_iter([])])
        }
        fn observe(&mut self, _: &[u32]) -> Result<()> {
            Ok(())
        }
    }
    let mut worker = TestWorker::start(|| {});
    let error = read(worker.submit(&PROMPT, config(), Some(Box::new(Nothing)))).unwrap_err();
    assert!(matches!(error, Error::InvalidConfig { field: "constraint", .. }), "{error}");
}
