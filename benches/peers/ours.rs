//! tokenflow.

use std::{path::Path, time::Instant};

use futures::{StreamExt, future::join_all};
use tokenflow::{ActivationType, GenerateConfig, KvCacheType, LoadConfig, TextModel, TokenStream, load_model};

use super::{
    process::{self, Result},
    work::Work,
};

pub struct Ours {
    pub model: Box<dyn TextModel>,
    /// Resident memory before loading.
    before: usize,
}

impl Ours {
    pub async fn load(path: &Path, threads: usize, int8_cache: bool) -> Result<Self> {
        let before = process::resident_bytes();
        // No prefix cache, and bfloat16 activations beside bfloat16 weights, as in llama.cpp.
        let mut config =
            LoadConfig::new().prefix_cache_tokens(0).threads(threads).activation_type(ActivationType::Bf16);
        config.kv_cache_type = int8_cache.then_some(KvCacheType::Int8);
        let model = load_model(path, config).await?;
        Ok(Self { model, before })
    }

    /// Resident memory, minus the memory of the process before loading.
    pub fn bytes(&self) -> f64 {
        process::resident_bytes().saturating_sub(self.before) as f64
    }

    /// Tokens per second.
    pub async fn run(&self, work: &Work) -> Result<f64> {
        match work.prompts.as_slice() {
            [prompt] if work.generate == 0 => {
                self.model.classify(&[&prompt.text], GenerateConfig::new()).await?;
                let metrics = self.model.metrics();
                assert_eq!((metrics.prompt_tokens, metrics.cached_prompt_tokens), (prompt.tokens.len(), 0));
                Ok(metrics.prefill_tokens_per_sec)
            }
            [prompt] => {
                let mut stream = self.start(&prompt.text, work.generate);
                read(&mut stream).await?;
                check(stream.metrics().generated_tokens, work.generate)?;
                Ok(stream.metrics().decode_tokens_per_sec)
            }
            _ => self.together(work).await,
        }
    }

    /// Decoding of several streams, from the moment when all have started.
    async fn together(&self, work: &Work) -> Result<f64> {
        let mut streams: Vec<_> = work.prompts.iter().map(|prompt| self.start(&prompt.text, work.generate)).collect();
        join_all(streams.iter_mut().map(|stream| stream.next())).await;
        let (before, begun) = (self.model.stats().sampled_tokens, Instant::now());
        join_all(streams.iter_mut().map(read)).await.into_iter().collect::<Result<Vec<_>>>()?;
        let (after, took) = (self.model.stats().sampled_tokens, begun.elapsed());
        for stream in streams {
            check(stream.metrics().generated_tokens, work.generate)?;
        }
        Ok((after - before) as f64 / took.as_secs_f64())
    }

    fn start(&self, prompt: &str, tokens: usize) -> TokenStream {
        self.model.generate(prompt, GenerateConfig::new().max_tokens(tokens))
    }
}

async fn read(stream: &mut TokenStream) -> Result<()> {
    while stream.next().await.is_some() {}
    stream.err().cloned().map_or(Ok(()), |error| Err(error.into()))
}

fn check(generated: usize, wanted: usize) -> Result<()> {
    if generated == wanted {
        Ok(())
    } else {
        Err(format!("an answer ended after {generated} of {wanted} tokens").into())
    }
}
