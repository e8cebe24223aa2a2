//! Inspected keys, queries, attention and hidden states, against transformers.

use std::fs;

use safetensors::SafeTensors;
use tokenflow::{
    AttentionSnapshot, Error, GenerateConfig, InspectConfig, Inspection, KvCacheType, LoadConfig, TextModel,
    testing::ScriptedModel,
};

use tokio_util::sync::CancellationToken;

use crate::{golden_model, golden_model_with, golden_path};

/// The text of `golden/inspection.py`.
const TEXT: &str = "Once there was a fox tha";

fn everything() -> InspectConfig {
    InspectConfig::new().attention(true).hidden_states(true)
}

async fn inspected(model: &dyn TextModel, text: &str, config: InspectConfig) -> Inspection {
    model.as_attention_inspector().unwrap().inspect(text, config).await.unwrap()
}

/// Equal numbers, relative to the greatest.
fn check(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    let difference = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(difference <= 1e-4 * scale, "{what} differ by {difference} of {scale}");
}

fn check_all(what: &str, found: &Inspection, bytes: &[u8]) {
    let expected = SafeTensors::deserialize(bytes).unwrap();
    let numbers = |name: &str| -> Option<Vec<f32>> {
        let tensor = expected.tensor(name).ok()?;
        Some(tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect())
    };
    let AttentionSnapshot { num_layers, num_heads, num_query_heads, seq_len, head_dim, keys, queries, .. } =
        &found.snapshot;
    assert_eq!(*seq_len, found.tokens.len());
    for (name, heads, ours) in [("keys", num_heads, keys), ("queries", num_query_heads, queries)] {
        let Some(theirs) = numbers(name) else { continue };
        assert_eq!(expected.tensor(name).unwrap().shape(), [*num_layers, *heads, *seq_len, *head_dim], "{what} {name}");
        check(&format!("{what}: {name}"), &ours.concat().concat(), &theirs);
    }
    check(&format!("{what}: attention"), &found.attention.concat().concat(), &numbers("attentions").unwrap());
    let hidden_states = numbers("hidden_states").unwrap();
    check(&format!("{what}: hidden states"), &found.hidden_states.concat(), &hidden_states);
}

#[tokio::test]
async fn inspection_matches_transformers() {
    let mut checked = 0;
    for entry in golden_path("inspection").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) = (path.file_stem().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        check_all(name, &inspected(&*golden_model(name).await, TEXT, everything()).await, &bytes);
        let file = format!("gguf_architectures/{name}.gguf");
        if golden_path(&file).exists() {
            let model = golden_model_with(&file, LoadConfig::new().kv_cache_type(KvCacheType::F32)).await;
            check_all(&file, &inspected(&*model, TEXT, everything()).await, &bytes);
        }
        checked += 1;
    }
    assert!(checked > 10);
}

#[tokio::test]
async fn inspection_returns_only_requested_parts() {
    let model = golden_model("gqa_llama3").await;
    let inspector = model.as_attention_inspector().unwrap();
    let snapshot = inspector.inspect_attention(TEXT, GenerateConfig::new()).await.unwrap();
    let all = inspected(&*model, TEXT, everything()).await;
    assert_eq!(snapshot, all.snapshot);
    assert_eq!((snapshot.architecture.as_str(), snapshot.num_layers), ("llama", model.info().num_layers));
    assert_eq!(all.hidden_states.len(), snapshot.num_layers + 1);
    let few = inspected(&*model, TEXT, InspectConfig::new()).await;
    assert!(few.attention.is_empty() && few.hidden_states.is_empty());
    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<AttentionSnapshot>(&json).unwrap(), snapshot);
    // Rows add up to one.
    for weights in all.attention.concat() {
        assert!(weights.chunks(snapshot.seq_len).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    }
}

#[tokio::test]
async fn adapters_change_the_inspection() {
    let model = golden_model("gqa_llama3").await;
    model.load_adapter("q_v", &golden_path("adapters/q_v")).await.unwrap();
    let plain = inspected(&*model, TEXT, everything()).await;
    let adapted = inspected(&*model, TEXT, everything().adapter("q_v")).await;
    assert_ne!(adapted.snapshot.queries, plain.snapshot.queries);
    assert_eq!(adapted.snapshot.keys[0], plain.snapshot.keys[0], "keys are not its target");
    let unknown = model.as_attention_inspector().unwrap().inspect(TEXT, everything().adapter("w")).await;
    assert!(matches!(unknown, Err(Error::InvalidConfig { field: "adapter", .. })), "{unknown:?}");
    let config = GenerateConfig::new().cancellation(CancellationToken::new());
    config.cancellation.as_ref().unwrap().cancel();
    let cancelled = model.as_attention_inspector().unwrap().inspect_attention(TEXT, config).await;
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
}

#[tokio::test]
async fn long_prompts_are_refused_before_computing() {
    let model = golden_model_with("gqa_llama3", LoadConfig::new().context_len(32)).await;
    let inspector = model.as_attention_inspector().unwrap();
    let long = inspector.inspect_attention(&TEXT.repeat(9), GenerateConfig::new()).await;
    assert!(matches!(long, Err(Error::PromptTooLong { limit: 32, .. })), "{long:?}");
    let tokens = inspected(&*model, TEXT, everything()).await.tokens.len();
    // Exactly as much memory as it takes, and a byte less.
    let numbers = |seen: &Inspection| {
        let AttentionSnapshot { keys, queries, .. } = &seen.snapshot;
        [keys, queries, &seen.attention].iter().map(|all| all.concat().concat().len()).sum::<usize>()
            + seen.hidden_states.concat().len()
    };
    let bytes = 4 * numbers(&inspected(&*model, TEXT, everything()).await);
    inspected(&*model, TEXT, everything().max_bytes(bytes)).await;
    let refused = inspector.inspect(TEXT, everything().max_bytes(bytes - 1)).await;
    assert!(matches!(refused, Err(Error::PromptTooLong { limit, .. }) if limit == tokens - 1), "{refused:?}");
}

#[tokio::test]
async fn requests_run_beside_inspection_and_close_ends_it() {
    let model = golden_model("qwen3").await;
    let answer = || model.generate("The dog", GenerateConfig::new().max_tokens(30)).text();
    let expected = answer().await.unwrap();
    let inspector = model.as_attention_inspector().unwrap();
    let long = TEXT.repeat(8);
    let many = async {
        for _ in 0..20 {
            inspector.inspect_attention(&long, GenerateConfig::new()).await.unwrap();
        }
    };
    let answers = async {
        for _ in 0..5 {
            assert_eq!(answer().await.unwrap(), expected);
        }
    };
    tokio::join!(many, answers);
    model.close().await.unwrap();
    assert!(matches!(inspector.inspect_attention(TEXT, GenerateConfig::new()).await, Err(Error::Closed)));
}

#[tokio::test]
async fn scripted_model_has_no_attention_inspector() {
    let model = ScriptedModel::new(|_| String::new()).build().unwrap();
    assert!(model.as_attention_inspector().is_none() && model.as_trainable().is_none());
}
