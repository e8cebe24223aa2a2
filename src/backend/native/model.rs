//! The handle of a model that an engine of this process runs.

use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;

use super::inspect;
use crate::{
    Adapter, AdapterFile, AttentionInspector, AttentionSnapshot, BatchResult, ClassifyResult, Error, GenerateConfig,
    GenerateMetrics, InspectConfig, Inspection, LoraConfig, Message, ModelInfo, ModelStats, Result, TextModel, Token,
    TokenStream, TrainConfig, TrainExample, TrainStream, TrainableModel, blocking,
    config::check_adapter_name,
    decoder::Network,
    engine::{BackgroundJobs, Engine},
    request::{Frontend, unless_over},
    text::{Prompt, TextProcessor},
    training::Trainer,
};

/// A model that an engine of this process runs.
pub struct NativeModel {
    info: ModelInfo,
    text: Arc<TextProcessor>,
    requests: Frontend<Engine>,
    /// `None` on devices where the model can neither be trained nor inspected.
    background: Option<Arc<BackgroundJobs<Network>>>,
    trainer: Option<Arc<Trainer>>,
}

impl NativeModel {
    pub fn new(
        info: ModelInfo,
        text: Arc<TextProcessor>,
        requests: Frontend<Engine>,
        background: Option<Arc<BackgroundJobs<Network>>>,
    ) -> Self {
        let trainer = background.clone().map(|background| Arc::new(Trainer::new(background)));
        Self { info, text, requests, background, trainer }
    }
}

#[async_trait]
impl TextModel for NativeModel {
    fn generate(&self, prompt: &str, config: GenerateConfig) -> TokenStream {
        self.requests.generate(Prompt::Text(prompt.to_owned()), config)
    }

    fn chat(&self, messages: &[Message], config: GenerateConfig) -> TokenStream {
        let prompt = if config.continue_final_message { Prompt::ContinuedChat } else { Prompt::Chat };
        self.requests.generate(prompt(messages.to_vec()), config)
    }

    fn generate_ids(&self, prompt: &[u32], config: GenerateConfig) -> TokenStream {
        self.requests.generate(Prompt::Ids(prompt.to_vec()), config)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.requests.check_open()?;
        self.text.tokenizer.encode(text, true)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.requests.check_open()?;
        if let Some(id) = ids.iter().find(|id| !self.requests.limits().knows(**id)) {
            let reason = format!("{id} is not in a vocabulary of {}", self.info.vocab_size);
            return Err(Error::config("ids", reason));
        }
        self.text.tokenizer.decode(ids)
    }

    fn token_id(&self, token: &str) -> Option<u32> {
        self.text.tokenizer.id_of(token).filter(|id| self.requests.limits().knows(*id))
    }

    fn end_ids(&self) -> Vec<u32> {
        self.text.end_ids.clone()
    }

    async fn classify(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<ClassifyResult>> {
        self.requests.classify(prompts, &config).await
    }

    async fn score(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<Vec<Token>>> {
        self.requests.score(prompts, &config).await
    }

    async fn batch_generate(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<BatchResult>> {
        self.requests.batch_generate(prompts, &config).await
    }

    fn model_type(&self) -> &str {
        &self.info.architecture
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn metrics(&self) -> GenerateMetrics {
        self.requests.last().0
    }

    fn err(&self) -> Option<Error> {
        self.requests.last().1
    }

    fn stats(&self) -> ModelStats {
        let mut stats = self.requests.stats();
        stats.weight_bytes += self.requests.executor.adapters.bytes();
        stats
    }

    async fn load_adapter(&self, name: &str, path: &Path) -> Result<()> {
        self.requests.check_open()?;
        check_adapter_name(name)?;
        let background = self.background.clone().ok_or_else(|| Error::config("adapter", "this model takes none"))?;
        let path = path.to_owned();
        let read = move || {
            let file = AdapterFile::read(path)?;
            background.lease()?.network.targets().resolve(&file)
        };
        self.requests.executor.adapters.add(name, blocking::run("load an adapter", read).await?)
    }

    async fn unload_adapter(&self, name: &str) -> Result<()> {
        self.requests.check_open()?;
        self.requests.executor.adapters.remove(name)
    }

    fn adapters(&self) -> Vec<String> {
        self.requests.executor.adapters.names()
    }

    async fn close(&self) -> Result<()> {
        self.requests.close();
        self.requests.executor.closed().await;
        if let Some(background) = &self.background {
            background.ended().await;
        }
        Ok(())
    }

    fn as_trainable(&self) -> Option<&dyn TrainableModel> {
        self.trainer.as_ref().map(|_| self as &dyn TrainableModel)
    }

    fn as_attention_inspector(&self) -> Option<&dyn AttentionInspector> {
        self.background.as_ref().map(|_| self as &dyn AttentionInspector)
    }
}

#[async_trait]
impl AttentionInspector for NativeModel {
    async fn inspect_attention(&self, prompt: &str, config: GenerateConfig) -> Result<AttentionSnapshot> {
        config.validate()?;
        let inspection = self.inspect(prompt, config.clone().into());
        let deadline = config.deadline.and_then(|deadline| deadline.at(Instant::now()));
        Ok(unless_over(config.cancellation.as_ref(), deadline, inspection).await?.snapshot)
    }

    async fn inspect(&self, prompt: &str, config: InspectConfig) -> Result<Inspection> {
        self.requests.check_open()?;
        let background =
            self.background.clone().ok_or_else(|| Error::config("config", "models are inspected on the CPU"))?;
        let (prompt, context_len) = (prompt.to_owned(), self.info.context_len);
        let wanted = Arc::new(());
        let waits = Arc::downgrade(&wanted);
        let goes_on = move || if waits.strong_count() > 0 { Ok(()) } else { Err(Error::Cancelled) };
        let seen =
            blocking::run("inspect", move || inspect::inspect(&background, prompt, context_len, &config, goes_on))
                .await;
        // Dropped earlier if the future is.
        drop(wanted);
        seen
    }
}

impl NativeModel {
    fn trainer(&self) -> Result<&Arc<Trainer>> {
        self.trainer.as_ref().ok_or_else(not_trainable)
    }
}

fn not_trainable() -> Error {
    Error::NotTrainable { reason: "models are trained on the CPU".into() }
}

#[async_trait]
impl TrainableModel for NativeModel {
    fn apply_lora(&self, config: LoraConfig) -> Result<Box<dyn Adapter>> {
        self.trainer()?.apply_lora(&config)
    }

    async fn apply_lora_async(&self, config: LoraConfig) -> Result<Box<dyn Adapter>> {
        let trainer = self.trainer()?.clone();
        blocking::run("apply an adapter", move || trainer.apply_lora_blocking(&config)).await
    }

    fn num_layers(&self) -> usize {
        self.info.num_layers
    }

    fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream {
        match self.trainer() {
            Ok(trainer) => trainer.train(examples, config),
            Err(error) => TrainStream::failed(error),
        }
    }
}
