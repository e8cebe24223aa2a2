//! Batch invariance: answers do not depend on other requests, prompt chunks, cache hits, preemption or drafts, bit for
//! bit.

use futures::{StreamExt, future::join_all};
use tokenflow::{GenerateConfig, KvCacheType, LoadConfig, ModelStats, Token};
use tokio::runtime::Runtime;

use crate::{directories, golden_model_with, golden_path, same_answers::Invariance};

fn answers_stay_the_same(name: &str, cases: u32) -> u64 {
    answers_stay_the_same_with(name, LoadConfig::new(), &[], cases)
}

/// Says how many guesses were right.
fn answers_stay_the_same_with(name: &str, config: LoadConfig, adapters: &[&str], cases: u32) -> u64 {
    let runtime = Runtime::new().unwrap();
    let load = |config: LoadConfig| {
        runtime.block_on(async {
            let model = golden_model_with(name, config).await;
            for adapter in adapters {
                model.load_adapter(adapter, &golden_path("adapters").join(adapter)).await.unwrap();
            }
            model
        })
    };
    let cache_bytes = |stats: ModelStats, tokens| tokens * (stats.kv_capacity_bytes / stats.kv_capacity_tokens);
    Invariance { name, load: &load, config, cache_bytes: &cache_bytes }.check(cases)
}

#[test]
fn quantized_files() {
    answers_stay_the_same("gguf/tiny-q4_0.gguf", 40);
    answers_stay_the_same("gguf/tiny-q8_0.gguf", 40);
}

#[test]
fn representative_models() {
    // 32 and 16 bits, one key/value head, experts, positions that depend on the length, sinks, MXFP4, linear biases,
    // experts in groups.
    let mut accepted = 0;
    let dense = ["gqa_llama3", "mqa_yarn", "phi3_long_v4", "dynamic", "gpt_oss_v4", "bloom_v5"];
    for name in dense.into_iter().chain(["mixtral_v4", "mxfp4_moe", "glm4_moe_v5"]) {
        accepted += answers_stay_the_same(name, 30);
    }
    assert!(accepted > 0, "no guess was ever right");
}

#[test]
fn int8_kv_cache() {
    for name in ["gqa_llama3", "gemma2_v5", "gpt_oss_v4", "bloom_v5", "gguf/tiny-q8_0.gguf"] {
        answers_stay_the_same_with(name, LoadConfig::new().kv_cache_type(KvCacheType::Int8), &[], 20);
    }
}

#[test]
fn mixed_adapters_in_one_batch() {
    answers_stay_the_same_with("phi3_v4", LoadConfig::new(), &["fused", "fused_dora"], 40);
    answers_stay_the_same_with("qwen2_moe_v4", LoadConfig::new(), &["shared_expert"], 20);
    answers_stay_the_same_with("gguf_architectures/gpt_neox_v4.gguf", LoadConfig::new(), &["by_head_rslora"], 20);
}

#[test]
fn all_architectures() {
    for name in directories() {
        answers_stay_the_same(&name, 6);
    }
}

#[tokio::test]
async fn thread_count_changes_no_bit() {
    for name in ["mha_tied", "gqa_llama3"] {
        let mut answers = Vec::new();
        for threads in [1, 2, 3] {
            let model = golden_model_with(name, LoadConfig::new().threads(threads)).await;
            let config = GenerateConfig::new().max_tokens(4).logprobs(8);
            // Prompts that are cut into tiles, and one that is not.
            let prompts = ["the quick brown fox ".repeat(30), "over the lazy dog ".repeat(20), "jumps".into()];
            let streams = prompts.iter().map(|prompt| model.generate(prompt, config.clone()).collect::<Vec<Token>>());
            answers.push(join_all(streams).await);
        }
        assert!(answers[0].iter().all(|answer| !answer.is_empty()), "{name}");
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{name}");
    }
}
