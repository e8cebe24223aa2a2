//! The real model.

use futures::StreamExt;
use serde_json::Value;
use tokenflow::{GenerateConfig, LoadConfig, Message, TextModel, load_model};
use tokio::sync::OnceCell;

use crate::{models, read_json};

/// The 4-bit file that the references were made with.
async fn model() -> &'static dyn TextModel {
    static MODEL: OnceCell<Box<dyn TextModel>> = OnceCell::const_new();
    let load = async || load_model(models::smollm2_gguf().await.unwrap(), LoadConfig::new()).await.unwrap();
    MODEL.get_or_init(load).await.as_ref()
}

#[tokio::test]
async fn it_knows_the_capital_of_france() {
    let text = model().await.generate("The capital of France is", GenerateConfig::new().max_tokens(4)).text().await;
    assert!(text.unwrap().contains("Paris"));
}

#[tokio::test]
async fn it_is_described_rightly() {
    let info = model().await.info();
    assert_eq!(model().await.model_type(), "llama");
    assert_eq!((info.vocab_size, info.num_layers, info.hidden_size), (49152, 30, 576));
    assert_eq!((info.quant_bits, info.quant_group, info.context_len), (4, 32, 8192));
}

/// Greedy tokens are llama.cpp's. Where its two likeliest tokens are nearly equal, rounding may
/// decide otherwise, and the texts part.
#[tokio::test]
async fn greedy_tokens_are_those_of_llama_cpp() {
    const NEAR_TIE: f64 = 0.35;
    let cases = read_json("smollm2/greedy.json");
    let mut compared = 0;
    for case in cases.as_array().unwrap() {
        let numbers = |key: &str| case[key].as_array().unwrap().clone();
        let expected: Vec<u32> = numbers("tokens").iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let margins: Vec<f64> = numbers("margins").iter().map(|margin| margin.as_f64().unwrap()).collect();
        let prompt = case["prompt"].as_str().unwrap();
        let stream = model().await.generate(prompt, GenerateConfig::new().max_tokens(32));
        let ours: Vec<u32> = stream.map(|token| token.id).collect().await;
        for (i, id) in ours.iter().enumerate() {
            if *id != expected[i] {
                assert!(margins[i] < NEAR_TIE, "{prompt:?}: token {i} is {id}, not {}: {ours:?}", expected[i]);
                break;
            }
            compared += 1;
        }
    }
    assert!(compared > 100, "only {compared} tokens were alike");
}

#[tokio::test]
async fn a_chat_reads_the_templates_tokens() {
    for case in read_json("smollm2/chat.json").as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let mut stream = model().await.chat(&messages, GenerateConfig::new().max_tokens(1));
        while stream.next().await.is_some() {}
        let expected: &Vec<Value> = case["ids"].as_array().unwrap();
        assert_eq!(stream.metrics().prompt_tokens, expected.len(), "{}", case["rendered"]);
    }
}

#[tokio::test]
async fn many_streams_answer_as_one_does() {
    let prompts = ["Once upon a time", "Water is made of", "My favourite colour is", "The sun rises in the"];
    let config = || GenerateConfig::new().max_tokens(12).temperature(0.7).top_p(0.9).seed(1);
    let together = model().await.batch_generate(&prompts, config()).await.unwrap();
    for (prompt, together) in prompts.iter().zip(together) {
        let alone: Vec<_> = model().await.generate(prompt, config()).collect().await;
        assert_eq!(together.tokens, alone, "{prompt:?}");
    }
}
