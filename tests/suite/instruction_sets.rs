//! Answers do not depend on the instruction set of the kernels, bit for bit.

use tokenflow::{ActivationType, GenerateConfig, InstructionSet, LoadConfig, Quantize, Token};

use futures::StreamExt;

use crate::{golden_model_with, golden_path};

/// The logits after a prompt, and an answer of sampled tokens with their probabilities.
async fn answers(name: &str, config: LoadConfig, adapter: Option<&str>) -> (Vec<f32>, Vec<Token>) {
    let model = golden_model_with(name, config).await;
    let mut config = GenerateConfig::new();
    if let Some(adapter) = adapter {
        model.load_adapter(adapter, &golden_path("adapters").join(adapter)).await.unwrap();
        config = config.adapter(adapter);
    }
    let prompt = "the quick brown fox jumps over the lazy dog ".repeat(4);
    let classified = model.classify(&[&prompt], config.clone().return_logits(true)).await.unwrap().remove(0);
    let config = config.max_tokens(12).temperature(0.8).top_p(0.9).seed(3).logprobs(4);
    let tokens = model.generate(&prompt, config).collect().await;
    (classified.logits.unwrap(), tokens)
}

#[tokio::test]
async fn answers_match_on_all_instruction_sets() {
    let plain = LoadConfig::new;
    let cases = [
        ("gguf/tiny-q4_0.gguf", plain(), None),
        ("gguf/tiny-q8_0.gguf", plain(), None),
        ("mxfp4_moe", plain(), None),
        ("gpt_oss_v4", plain(), None),
        ("bloom_v5", plain(), None),
        ("granite_v4", plain().quantize(Quantize::Int4), None),
        ("gqa_llama3", plain().activation_type(ActivationType::Bf16), None),
        ("phi3_v4", plain(), Some("fused_dora")),
    ];
    for (name, config, adapter) in cases {
        let scalar = answers(name, config.clone().instruction_set(InstructionSet::Scalar), adapter).await;
        assert!(!scalar.1.is_empty(), "{name}");
        for set in InstructionSet::available() {
            let ours = answers(name, config.clone().instruction_set(set), adapter).await;
            assert_eq!(ours, scalar, "{name} {set:?}");
        }
    }
}
