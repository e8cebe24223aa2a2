use std::{path::Path, sync::Arc, time::Instant};

use async_trait::async_trait;
use futures::{
    StreamExt, TryFutureExt,
    future::{join_all, try_join_all},
};

use crate::{
    Adapter, AdapterFile, AttentionInspector, AttentionSnapshot, BatchResult, ClassifyResult, Error, GenerateConfig,
    GenerateMetrics, InspectConfig, Inspection, LoraConfig, Message, ModelInfo, ModelStats, Result, TextModel, Token,
    TokenStream, TrainConfig, TrainExample, TrainStream, TrainableModel, blocking,
    config::check_adapter_name,
    engine::{BackgroundJobs, Engine, unless_over},
    inspect,
    text::{Prompt, TextProcessor},
    training::Trainer,
};

/// A model that runs in this process.
pub struct NativeModel {
    info: ModelInfo,
    text: Arc<TextProcessor>,
    engine: Engine,
    /// `None` if requests are all that the model can be used for where it is.
    background: Option<BackgroundJobs>,
    trainer: Option<Arc<Trainer>>,
}

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Generate,
    Classify,
    Score,
}

impl NativeModel {
    pub fn new(info: ModelInfo, text: Arc<TextProcessor>, engine: Engine, background: Option<BackgroundJobs>) -> Self {
        let trainer = background.clone().map(|background| Arc::new(Trainer::new(background)));
        Self { info, text, engine, background, trainer }
    }

    fn start(&self, prompt: Prompt, config: GenerateConfig) -> TokenStream {
        match self.check(&config, Task::Generate) {
            Ok(()) => self.engine.generate(prompt, config),
            Err(error) => self.engine.refuse(error),
        }
    }

    /// Refuses what this model cannot honour.
    fn check(&self, config: &GenerateConfig, task: Task) -> Result<()> {
        config.validate()?;
        self.engine.adapter(config)?;
        if config.return_logits && task != Task::Classify {
            return Err(Error::config("return_logits", "true; only classify returns logits"));
        }
        let stops = match task {
            Task::Generate => None,
            _ if !config.stop.is_empty() => Some(("stop", format!("{:?}", config.stop))),
            _ if !config.stop_tokens.is_empty() => Some(("stop_tokens", format!("{:?}", config.stop_tokens))),
            _ if config.min_tokens > 0 => Some(("min_tokens", config.min_tokens.to_string())),
            _ if config.ignore_eos => Some(("ignore_eos", "true".into())),
            _ => None,
        };
        if let Some((field, value)) = stops {
            return Err(Error::config(field, format!("{value}; nothing is generated that could be stopped")));
        }
        let unknown = |id: &&u32| !self.knows(**id);
        let stop_token = config.stop_tokens.iter().find(unknown).map(|id| ("stop_tokens", id));
        let biased = config.logit_bias.keys().find(unknown).map(|id| ("logit_bias", id));
        match stop_token.or(biased) {
            Some((field, id)) => {
                Err(Error::config(field, format!("{id} is not in a vocabulary of {}", self.info.vocab_size)))
            }
            None => Ok(()),
        }
    }

    /// Whether an id is in the vocabulary.
    fn knows(&self, id: u32) -> bool {
        (id as usize) < self.info.vocab_size
    }

    /// Notes the figures of a call that was many sequences.
    fn record(&self, started: Instant, parts: &[GenerateMetrics], error: Option<Error>) {
        self.engine.record(GenerateMetrics::of_many(parts, started.elapsed()), error);
    }

    async fn classify_one(&self, prompt: &str, config: GenerateConfig) -> Result<(ClassifyResult, GenerateMetrics)> {
        let (mut stream, logits) = self.engine.classify(Prompt::Text(prompt.to_owned()), config).await;
        let token = stream.next().await;
        // The end brings the error or the figures.
        while stream.next().await.is_some() {}
        if let Some(error) = stream.err() {
            return Err(error.clone());
        }
        let token = token.ok_or_else(|| Error::internal("a prediction gave no token"))?;
        let logits = match logits {
            Some(logits) => Some(logits.await.map_err(|_| Error::internal("a prediction gave no logits"))?),
            None => None,
        };
        Ok((ClassifyResult { token, logits }, stream.metrics()))
    }

    async fn score_one(&self, prompt: &str, config: &GenerateConfig) -> Result<(Vec<Token>, GenerateMetrics)> {
        let mut stream = self.engine.score(Prompt::Text(prompt.to_owned()), config.clone()).await;
        let mut tokens = Vec::new();
        while let Some(token) = stream.next().await {
            tokens.push(token);
        }
        stream.err().cloned().map_or(Ok((tokens, stream.metrics())), Err)
    }

    /// What a call answers that computes prompts only; the first that fails fails it, and the error says which one it
    /// was.
    async fn of_all<T>(
        &self,
        config: &GenerateConfig,
        task: Task,
        parts: impl Iterator<Item = impl Future<Output = Result<(T, GenerateMetrics)>>>,
    ) -> Result<Vec<T>> {
        let started = Instant::now();
        let outcome = match self.check(config, task) {
            Ok(()) => {
                let named = parts.enumerate().map(|(index, part)| part.map_err(move |error| error.at_prompt(index)));
                try_join_all(named).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(parts) => {
                let (results, metrics): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
                self.record(started, &metrics, None);
                Ok(results)
            }
            Err(error) => {
                self.record(started, &[], Some(error.clone()));
                Err(error)
            }
        }
    }

    async fn generate_one(&self, prompt: &str, config: GenerateConfig) -> (BatchResult, GenerateMetrics) {
        let mut stream = self.engine.generate_queued(Prompt::Text(prompt.to_owned()), config).await;
        let mut result = BatchResult::default();
        while let Some(token) = stream.next().await {
            result.tokens.push(token);
        }
        result.err = stream.err().cloned();
        (result, stream.metrics())
    }
}

#[async_trait]
impl TextModel for NativeModel {
    fn generate(&self, prompt: &str, config: GenerateConfig) -> TokenStream {
        self.start(Prompt::Text(prompt.to_owned()), config)
    }

    fn chat(&self, messages: &[Message], config: GenerateConfig) -> TokenStream {
        let prompt = if config.continue_final_message { Prompt::ContinuedChat } else { Prompt::Chat };
        self.start(prompt(messages.to_vec()), config)
    }

    fn generate_ids(&self, prompt: &[u32], config: GenerateConfig) -> TokenStream {
        self.start(Prompt::Ids(prompt.to_vec()), config)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.engine.check_open()?;
        self.text.tokenizer.encode(text, true)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.engine.check_open()?;
        if let Some(id) = ids.iter().find(|id| !self.knows(**id)) {
            let reason = format!("{id} is not in a vocabulary of {}", self.info.vocab_size);
            return Err(Error::config("ids", reason));
        }
        self.text.tokenizer.decode(ids)
    }

    fn token_id(&self, token: &str) -> Option<u32> {
        self.text.tokenizer.id_of(token).filter(|id| self.knows(*id))
    }

    fn end_ids(&self) -> Vec<u32> {
        self.text.end_ids.clone()
    }

    async fn classify(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<ClassifyResult>> {
        let parts = prompts.iter().enumerate();
        let parts = parts.map(|(index, prompt)| self.classify_one(prompt, config.for_prompt(index)));
        self.of_all(&config, Task::Classify, parts).await
    }

    async fn score(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<Vec<Token>>> {
        self.of_all(&config, Task::Score, prompts.iter().map(|prompt| self.score_one(prompt, &config))).await
    }

    async fn batch_generate(&self, prompts: &[&str], config: GenerateConfig) -> Result<Vec<BatchResult>> {
        let started = Instant::now();
        let usable = self.check(&config, Task::Generate).and_then(|()| self.engine.check_open());
        if let Err(error) = usable {
            self.record(started, &[], Some(error.clone()));
            return Err(error);
        }
        let parts = prompts.iter().enumerate();
        let parts = parts.map(|(index, prompt)| self.generate_one(prompt, config.for_prompt(index)));
        let parts = join_all(parts).await;
        let (results, metrics): (Vec<BatchResult>, Vec<_>) = parts.into_iter().unzip();
        self.record(started, &metrics, results.iter().find_map(|result| result.err.clone()));
        Ok(results)
    }

    fn model_type(&self) -> &str {
        &self.info.architecture
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn metrics(&self) -> GenerateMetrics {
        self.engine.last().0
    }

    fn err(&self) -> Option<Error> {
        self.engine.last().1
    }

    fn stats(&self) -> ModelStats {
        self.engine.stats()
    }

    async fn load_adapter(&self, name: &str, path: &Path) -> Result<()> {
        self.engine.check_open()?;
        check_adapter_name(name)?;
        let background = self.background.clone().ok_or_else(|| Error::config("adapter", "this model takes none"))?;
        let path = path.to_owned();
        let read = move || {
            let file = AdapterFile::read(path)?;
            background.lease()?.network.targets().resolve(&file)
        };
        self.engine.adapters.add(name, blocking::run("load an adapter", read).await?)
    }

    async fn unload_adapter(&self, name: &str) -> Result<()> {
        self.engine.check_open()?;
        self.engine.adapters.remove(name)
    }

    fn adapters(&self) -> Vec<String> {
        self.engine.adapters.names()
    }

    async fn close(&self) -> Result<()> {
        self.engine.close().await;
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
        Ok(unless_over(&config, Instant::now(), inspection).await?.snapshot)
    }

    async fn inspect(&self, prompt: &str, config: InspectConfig) -> Result<Inspection> {
        self.engine.check_open()?;
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
        blocking::run("apply an adapter", move || trainer.apply_lora_whole(&config)).await
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
