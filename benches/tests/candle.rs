//! Logits of a tiny model beside those of candle-transformers.

use std::{fs::File, path::Path};

use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::Value;
use tokenflow::{GenerateConfig, LoadConfig, load_model};

#[tokio::test]
async fn logits_match_candle_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/gguf");
    let path = folder.join("tiny-f32.gguf");
    let mut file = File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut theirs = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let ours = load_model(&path, LoadConfig::new()).await.unwrap();
    let expected: Value = serde_json::from_reader(File::open(folder.join("expected.json")).unwrap()).unwrap();
    for prompt in expected["tiny-f32.gguf"]["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
        let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs: Vec<f32> = theirs.forward(&input, 0).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
        let text = prompt["text"].as_str().unwrap();
        let ours = ours.classify(&[text], GenerateConfig::new().return_logits(true)).await.unwrap().remove(0);
        let difference = difference(&ours.logits.unwrap(), &theirs);
        assert!(difference < 1e-4, "{text:?}: logits differ by {difference}");
    }
}

/// The greatest difference, relative to the greatest logit.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let greatest = |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).fold(0.0, f32::max);
    greatest(&mut ours.iter().zip(theirs).map(|(a, b)| a - b)) / greatest(&mut theirs.iter().copied())
}
