//! Models with recurrent layers: invariance, prefix cache, preemption, drafts, adapters, training and inspection, on a
//! toy that only tests have.

#[path = "../../tests/support/same_answers.rs"]
mod same_answers;
mod toy;

use futures::{StreamExt, future::join_all};
use same_answers::Invariance;
use tokio::runtime::Runtime;
use toy::Toy;

use crate::{
    GenerateConfig, InspectConfig, LoadConfig, LoraConfig, ModelStats, Schedule, TextModel, Token, TrainConfig,
    TrainExample, load_trainable,
};

/// Recurrent layers first and last.
const HYBRID: &[&str] = &["average", "full_attention", "average", "narrow_attention", "average"];
/// Attention first and last.
const SANDWICH: &[&str] = &["narrow_attention", "average", "average", "full_attention"];

/// Cache memory for so many tokens, of which half could be states.
fn cache_bytes(toy: &Toy) -> impl Fn(ModelStats, usize) -> usize {
    let token_bytes = toy.token_bytes();
    move |_, tokens| 2 * tokens * token_bytes
}

fn answers_stay_the_same(toy: &Toy, config: LoadConfig, adapters: &[&str], cases: u32) -> u64 {
    let runtime = Runtime::new().unwrap();
    let load = |config: LoadConfig| {
        runtime.block_on(async {
            let model = toy.load(config).await;
            for adapter in adapters {
                model.load_adapter(adapter, &toy.path.join(adapter)).await.unwrap();
            }
            model
        })
    };
    Invariance { name: "toy", load: &load, config, cache_bytes: &cache_bytes(toy) }.check(cases)
}

async fn answer(model: &dyn TextModel, prompt: &str, config: &GenerateConfig) -> Vec<Token> {
    model.generate(prompt, config.clone()).collect().await
}

#[test]
fn answers_do_not_depend_on_other_requests_chunks_caches_or_drafts() {
    // State slots for about 50 sequences, and for one to four.
    let mut accepted = 0;
    for (kinds, width) in [(HYBRID, 32), (HYBRID, 1024), (SANDWICH, 32), (SANDWICH, 1500)] {
        accepted += answers_stay_the_same(&Toy::new(kinds, width), LoadConfig::new(), &[], 40);
    }
    assert!(accepted > 0, "no draft was ever right");
}

#[test]
fn answers_of_a_model_of_recurrent_layers_alone_stay_the_same() {
    let toy = Toy::new(&["average", "average"], 64);
    let runtime = Runtime::new().unwrap();
    let load = |config: LoadConfig| runtime.block_on(toy.load(config));
    let cache_bytes = |_, tokens| 2 * tokens * 64;
    Invariance { name: "toy", load: &load, config: LoadConfig::new(), cache_bytes: &cache_bytes }.check(30);
}

#[test]
fn adapters_on_both_kinds_of_layers_share_passes() {
    let toy = Toy::new(HYBRID, 32);
    toy.adapter("recurrent", &[("average.in_proj", 64, 48), ("average.out_proj", 48, 32)]);
    toy.adapter("attention", &[("self_attn.o_proj", 48, 96)]);
    let runtime = Runtime::new().unwrap();
    let [plain, adapted] = ["", "recurrent"].map(|adapter| {
        runtime.block_on(async {
            let model = toy.load(LoadConfig::new()).await;
            let config = GenerateConfig::new().max_tokens(4).logprobs(8);
            if adapter.is_empty() {
                return answer(&*model, "Hello world", &config).await;
            }
            model.load_adapter(adapter, &toy.path.join(adapter)).await.unwrap();
            answer(&*model, "Hello world", &config.adapter(adapter)).await
        })
    });
    assert_ne!(plain, adapted);
    answers_stay_the_same(&toy, LoadConfig::new(), &["recurrent"], 20);
}

#[tokio::test]
async fn thread_count_changes_no_bit() {
    for kinds in [HYBRID, SANDWICH] {
        let toy = Toy::new(kinds, 32);
        let mut answers = Vec::new();
        for threads in [1, 2, 3] {
            let model = toy.load(LoadConfig::new().threads(threads)).await;
            let config = GenerateConfig::new().max_tokens(4).logprobs(8);
            // Prompts that are cut into tiles, and one that is not.
            let prompts = ["the quick brown fox ".repeat(30), "over the lazy dog ".repeat(20), "jumps".into()];
            let streams = prompts.iter().map(|prompt| answer(&*model, prompt, &config));
            answers.push(join_all(streams).await);
        }
        assert!(answers[0].iter().all(|answer| !answer.is_empty()));
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{kinds:?}");
    }
}

#[tokio::test]
async fn prefixes_are_found_up_to_their_snapshots() {
    let toy = Toy::new(HYBRID, 32);
    let model = toy.load(LoadConfig::new()).await;
    let config = GenerateConfig::new().max_tokens(40).ignore_eos(true).logprobs(8);
    let prompt = "the quick brown fox jumps over the lazy dog ".repeat(3);
    let ids = model.encode(&prompt).unwrap();
    let first = answer(&*model, &prompt, &config).await;
    assert_eq!(model.metrics().cached_prompt_tokens, 0);
    assert_eq!(answer(&*model, &prompt, &config).await, first);
    assert_eq!(model.metrics().cached_prompt_tokens, (ids.len() - 1) / 16 * 16);
    // The next turn goes on after the answer.
    let answered: Vec<u32> = first.iter().map(|token| token.id).collect();
    let turn = [ids.clone(), answered[..39].to_vec(), model.encode("and then").unwrap()].concat();
    let fresh = toy.load(LoadConfig::new()).await;
    let expected: Vec<Token> = fresh.generate_ids(&turn, config.clone()).collect().await;
    let found: Vec<Token> = model.generate_ids(&turn, config.clone()).collect().await;
    assert_eq!(found, expected);
    assert_eq!(model.metrics().cached_prompt_tokens, (ids.len() + 39) / 16 * 16);
    // A second prompt that leaves the first one early finds nothing, and a third one what the second one left there.
    let branch = |end: &str| [&ids[..40], &model.encode(&end.repeat(20)).unwrap()].concat();
    for (end, cached) in [("jumps", 0), ("fox", 32)] {
        let found: Vec<Token> = model.generate_ids(&branch(end), config.clone()).collect().await;
        assert_eq!(model.metrics().cached_prompt_tokens, cached, "{end}");
        let expected: Vec<Token> = fresh.generate_ids(&branch(end), config.clone()).collect().await;
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn preempted_and_evicted_sequences_are_computed_again_to_the_bit() {
    let toy = Toy::new(HYBRID, 256);
    let config = GenerateConfig::new().max_tokens(60).ignore_eos(true).logprobs(8);
    let prompts: Vec<String> = (0..6).map(|i| format!("{i} the quick brown fox ").repeat(2)).collect();
    let fresh = toy.load(LoadConfig::new()).await;
    let tight = LoadConfig::new().context_len(112).kv_cache_bytes(140 * toy.token_bytes() + 6 * toy.state_bytes());
    let model = toy.load(tight).await;
    for _ in 0..2 {
        let together = join_all(prompts.iter().map(|prompt| answer(&*model, prompt, &config))).await;
        for (prompt, found) in prompts.iter().zip(together) {
            assert_eq!(found, answer(&*fresh, prompt, &config).await);
        }
    }
    assert!(model.stats().preemptions > 0);
    assert_eq!(model.stats().kv_used_bytes, 0);
}

#[tokio::test]
async fn wrong_drafts_leave_no_trace_in_a_state() {
    let toy = Toy::new(HYBRID, 32);
    let model = toy.load(LoadConfig::new()).await;
    let config = GenerateConfig::new().max_tokens(120).ignore_eos(true).logprobs(8);
    let prompt = "the fox and the dog and the fox and the ".repeat(3);
    let plain = answer(&*model, &prompt, &config).await;
    assert_eq!(answer(&*model, &prompt, &config.clone().prompt_lookup(8)).await, plain);
    let stats = model.stats();
    assert!(stats.drafted_tokens > stats.accepted_tokens && stats.accepted_tokens > 0, "{stats:?}");
}

#[tokio::test]
async fn training_agrees_with_scoring_and_learns() {
    for kinds in [HYBRID, SANDWICH] {
        let toy = Toy::new(kinds, 32);
        let model = load_trainable(&toy.path, LoadConfig::new()).await.unwrap();
        let text = "the quick brown fox jumps over the lazy dog";
        let scored = model.score(&[text], GenerateConfig::new()).await.unwrap().remove(0);
        let losses = scored.iter().filter_map(|token| Some(-token.logprobs.as_ref()?.logprob));
        let losses: Vec<f32> = losses.collect();
        let tokens = model.encode(text).unwrap();
        let targets = ["in_proj", "out_proj", "q_proj", "v_proj"].map(String::from);
        let mut runs = Vec::new();
        for checkpoint_activations in [false, true] {
            let lora = LoraConfig::new().target_keys(targets.clone());
            model.apply_lora_async(lora).await.unwrap();
            let config = TrainConfig::new()
                .epochs(30)
                .schedule(Schedule::Constant)
                .learning_rate(1e-2)
                .checkpoint_activations(checkpoint_activations);
            let steps = model.train(vec![TrainExample::Tokens(tokens.clone())], config).collect::<Vec<_>>().await;
            runs.push(steps.iter().map(|step| step.loss).collect::<Vec<f32>>());
        }
        let mean = losses.iter().sum::<f32>() / losses.len() as f32;
        assert!((runs[0][0] - mean).abs() < 1e-3, "{} of {mean}", runs[0][0]);
        assert!(runs[0].last().unwrap() < &(0.5 * mean), "{:?}", runs[0]);
        assert_eq!(runs[0], runs[1], "layers computed anew on the way back give the same gradients");
    }
}

#[tokio::test]
async fn inspection_shows_each_layer_as_it_is() {
    let toy = Toy::new(HYBRID, 32);
    let model = toy.load(LoadConfig::new()).await;
    let inspector = model.as_attention_inspector().unwrap();
    let seen =
        inspector.inspect("Hello world", InspectConfig::new().attention(true).hidden_states(true)).await.unwrap();
    let len = seen.tokens.len();
    let shapes = |layers: &[Vec<Vec<f32>>]| -> Vec<_> {
        layers.iter().map(|heads| (heads.len(), heads.first().map_or(0, Vec::len) / len)).collect()
    };
    assert_eq!(shapes(&seen.snapshot.keys), [(0, 0), (2, 16), (0, 0), (1, 24), (0, 0)]);
    assert_eq!(shapes(&seen.snapshot.queries), [(0, 0), (6, 16), (0, 0), (2, 24), (0, 0)]);
    assert_eq!(shapes(&seen.attention), [(0, 0), (6, len), (0, 0), (2, len), (0, 0)]);
    assert_eq!((seen.snapshot.num_heads, seen.snapshot.head_dim, seen.hidden_states.len()), (2, 16, 6));
}
