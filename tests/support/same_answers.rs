//! Random requests, packed into a model with little room, against each of them alone.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use proptest::{prelude::*, test_runner::TestRunner};
use tokenflow::{GenerateConfig, LoadConfig, ModelStats, TextModel, Token};
use tokio::runtime::Runtime;

/// Tokens a sequence may hold; little, so that caches are tight.
const CONTEXT: usize = 96;

#[derive(Debug, Clone)]
struct Request {
    prompt: String,
    max_tokens: usize,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    penalty: f32,
    seed: u64,
    priority: i32,
    arrives_ms: u64,
    /// The tokens it reads before it leaves.
    leaves: Option<usize>,
    /// The adapter it uses, if its model has any.
    adapter: Option<usize>,
    /// Tokens that are guessed at a time.
    lookup: usize,
    /// Settings that keep it from ending.
    min_tokens: usize,
    ignore_eos: bool,
    /// How far penalties look back.
    window: usize,
}

impl Request {
    fn config(&self, adapters: &[String]) -> GenerateConfig {
        let mut config = GenerateConfig::new();
        config.adapter = self.adapter.and_then(|adapter| adapters.get(adapter)).cloned();
        config
            .max_tokens(self.max_tokens)
            .temperature(self.temperature)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .frequency_penalty(self.penalty)
            .repeat_penalty(1.0 + self.penalty)
            .penalty_window(self.window)
            .min_tokens(self.min_tokens.min(self.max_tokens))
            .ignore_eos(self.ignore_eos)
            .seed(self.seed)
            .priority(self.priority)
            .prompt_lookup(self.lookup)
            // A fingerprint of the logits.
            .logprobs(8)
    }

    async fn run(&self, model: &dyn TextModel) -> Vec<Token> {
        tokio::time::sleep(Duration::from_millis(self.arrives_ms)).await;
        let stream = model.generate(&self.prompt, self.config(&model.adapters()));
        stream.take(self.leaves.unwrap_or(usize::MAX)).collect().await
    }

    /// The settings that decide its answer.
    fn key(&self) -> String {
        format!("{:?}", Self { priority: 0, arrives_ms: 0, leaves: None, lookup: 0, ..self.clone() })
    }
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    // Prompts with common beginnings.
    let prompt = ("(Hello world, this is |The quick brown fox jumps over )", "[a-c ]{0,30}").prop_map(|(a, b)| a + &b);
    let sampling = (0usize..2, 0usize..3, 0usize..2, 0usize..2, 0u64..4);
    let fate = (0i32..2, 0u64..15, prop::option::weighted(0.2, 0usize..6), prop::option::weighted(0.7, 0usize..3));
    let lookup = prop_oneof![Just(0usize), 1usize..12];
    let ends = (prop_oneof![Just(0usize), 1usize..12], any::<bool>(), 0usize..3);
    let request =
        (prompt, 1usize..24, sampling, fate, (lookup, ends)).prop_map(|(prompt, max_tokens, sampling, fate, more)| {
            let (lookup, (min_tokens, ignore_eos, window)) = more;
            let (temperature, top_k, top_p, penalty, seed) = sampling;
            let (priority, arrives_ms, leaves, adapter) = fate;
            Request {
                prompt,
                max_tokens,
                temperature: [0.0, 0.9][temperature],
                top_k: [0, 5, 40][top_k],
                top_p: [0.0, 0.8][top_p],
                penalty: [0.0, 0.5][penalty],
                seed,
                priority,
                arrives_ms,
                leaves,
                adapter,
                lookup,
                min_tokens,
                ignore_eos,
                window: [0, 4, 20][window],
            }
        });
    prop::collection::vec(request, 1..20)
}

/// A model whose answers are to stay the same.
pub struct Invariance<'a> {
    pub name: &'a str,
    pub load: &'a dyn Fn(LoadConfig) -> Box<dyn TextModel>,
    pub config: LoadConfig,
    /// Cache memory that little more than so many tokens need, given the figures of a model with much.
    pub cache_bytes: &'a dyn Fn(ModelStats, usize) -> usize,
}

impl Invariance<'_> {
    /// Answers random requests together, with little room, and each of them alone, with much, in so many cases. Gives
    /// the number of right draft tokens.
    pub fn check(&self, cases: u32) -> u64 {
        let Self { name, load, config, cache_bytes } = self;
        let runtime = Runtime::new().unwrap();
        let load = |config: LoadConfig| load(config.context_len(CONTEXT));
        let roomy = load(config.clone().prefix_cache_tokens(0));
        let alone: RefCell<HashMap<String, Vec<Token>>> = RefCell::default();
        let accepted = Cell::new(0);
        let stats = roomy.stats();
        let tight = (1usize..64, 1usize..9, prop_oneof![Just(0), Just(10_000)], CONTEXT + 16..3 * CONTEXT);
        let settings = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let outcome =
            TestRunner::new(settings).run(&(requests(), tight), |(requests, (batched, slots, cached, tokens))| {
                let config = config
                    .clone()
                    .max_batched_tokens(batched)
                    .parallel_slots(slots)
                    .prefix_cache_tokens(cached)
                    .kv_cache_bytes(cache_bytes(stats, tokens));
                let model = load(config);
                let together = runtime.block_on(join_all(requests.iter().map(|request| request.run(&*model))));
                for (request, answer) in requests.iter().zip(together) {
                    let mut alone = alone.borrow_mut();
                    let reference = alone.entry(request.key()).or_insert_with(|| {
                        let request = Request { leaves: None, arrives_ms: 0, lookup: 0, ..request.clone() };
                        runtime.block_on(request.run(&*roomy))
                    });
                    let read = request.leaves.unwrap_or(usize::MAX).min(reference.len());
                    prop_assert_eq!(&answer[..], &reference[..read]);
                }
                accepted.set(accepted.get() + model.stats().accepted_tokens);
                Ok(())
            });
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        accepted.get()
    }
}
