use std::path::Path;

use async_trait::async_trait;

use super::{LoraConfig, TrainConfig, TrainExample, TrainStream};
use crate::{Result, TextModel};

/// A model that can be fine-tuned: every model of the cpu backend, its weights quantised or not.
///
/// The weights stay as they are. What is learned is an adapter: a small change of some linear maps.
///
/// # Examples
/// ```no_run
/// # async fn run() -> tokenflow::Result<()> {
/// use futures::StreamExt;
/// use tokenflow::{LoadConfig, LoraConfig, Message, TrainConfig, TrainExample, load_trainable};
///
/// let model = load_trainable("SmolLM2-135M-Instruct", LoadConfig::new()).await?;
/// let adapter = model.apply_lora(LoraConfig::new().rank(16))?;
/// let example = [Message::user("Who wrote this?"), Message::assistant("A few people.")];
/// let mut training = model.train(vec![TrainExample::chat(example)], TrainConfig::new().epochs(20));
/// while let Some(progress) = training.next().await {
///     println!("{} of {}: loss {:.3}", progress.step, progress.total_steps, progress.loss);
/// }
/// training.result()?;
/// adapter.save_async("adapter".as_ref()).await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait TrainableModel: TextModel {
    /// Begins a new adapter, which [`train`](Self::train) is to teach from now on. It changes nothing yet; one that
    /// begins as
    /// [`LoraConfig::initial`] is used by requests that name no adapter from now on.
    ///
    /// Returns at once with a new adapter, whose numbers a thread of its own finds; [`Adapter::save`] waits for them.
    /// With [`LoraConfig::initial`] it reads the files and prepares the adapter for requests first: tens of
    /// milliseconds for small adapters, seconds with DoRA on large models. On an async runtime
    /// [`apply_lora_async`](Self::apply_lora_async) is for those.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the field at fault; an unknown target is answered
    /// with those that are known.
    fn apply_lora(&self, config: LoraConfig) -> Result<Box<dyn Adapter>>;

    /// As [`apply_lora`](Self::apply_lora), on a thread of its own, and returns when the adapter is there. A model that
    /// does not say otherwise does it on the caller's thread.
    ///
    /// # Errors
    /// As [`apply_lora`](Self::apply_lora).
    ///
    /// # Cancel safety
    /// The adapter may be applied even if the future is dropped.
    async fn apply_lora_async(&self, config: LoraConfig) -> Result<Box<dyn Adapter>> {
        self.apply_lora(config)
    }

    /// Transformer layers.
    fn num_layers(&self) -> usize;

    /// Teaches the adapter that was applied last; without one, that of [`LoraConfig::default`].
    ///
    /// Returns at once. Training has a thread of its own and takes turns with the model's requests, which go first,
    /// layer by layer. Requests that name no adapter use the learned one once training has ended, or has been
    /// [evaluated](TrainConfig::eval_split); those that began before end as they began.
    ///
    /// The same examples, configurations and seeds give the same adapter, to the bit, on one machine and build.
    ///
    /// One training at a time is possible. Where the last one's stream has been dropped, this one begins when that has
    /// ended.
    ///
    /// A training that diverges ends with an error: its loss or what it learns is no finite number any more, or its
    /// loss on a few of its examples stays more than 2 nats above twice what it was in the beginning, or before it
    /// rose. What was learned before is what requests use and [`Adapter::save`] writes then, and no checkpoint has
    /// anything else.
    ///
    /// # Errors
    /// They end the stream: see [`TrainStream::result`].
    /// [`Error::TrainingInProgress`](crate::Error::TrainingInProgress) if somebody still reads another training.
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the field at fault: `examples`, with the index of
    /// one that nothing can be learned from unless [`TrainConfig::on_bad_example`] leaves it out, or `learning_rate` if
    /// training diverged. [`Error::ChatTemplate`](crate::Error::ChatTemplate) says which chat the template refuses.
    ///
    /// # Cancel safety
    /// Dropping the stream ends training within one layer of the step under way, of which nothing is kept; the adapter
    /// is that of the step before, for requests as well, once its loss on a few examples has been looked at.
    /// [`TrainStream::stop`] waits for that. The same is left of a training that fails.
    fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream;
}

/// An adapter that a model learns.
#[async_trait]
pub trait Adapter: Send + Sync {
    /// The numbers that are learned.
    fn total_params(&self) -> usize;

    /// Writes what has been learned so far as a directory of [PEFT](https://github.com/huggingface/peft):
    /// `adapter_config.json` and `adapter_model.safetensors`. Whoever reads it meanwhile finds whole files.
    ///
    /// Returns when they are on the disk, which blocks the thread for as long as that takes: tens of milliseconds, more
    /// for large adapters and slow disks. On an async runtime there is [`save_async`](Self::save_async).
    ///
    /// # Errors
    /// [`Error::InvalidModel`](crate::Error::InvalidModel) with the directory that cannot be written.
    fn save(&self, path: &Path) -> Result<()>;

    /// As [`save`](Self::save), on a thread of its own. An adapter that does not say otherwise is written on the
    /// caller's thread.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    ///
    /// # Cancel safety
    /// The files are written even if the future is dropped.
    async fn save_async(&self, path: &Path) -> Result<()> {
        self.save(path)
    }
}
