//! Fine-tuning: low-rank adapters ([LoRA](https://arxiv.org/abs/2106.09685)) learned beside the requests of the same model.

mod adamw;
mod checkpoint;
mod config;
mod data;
mod lora;
mod progress;
mod random;
mod run;
mod step;
mod trainer;

use std::path::Path;

pub use config::{LoraConfig, Schedule, TrainConfig, TrainExample};
pub use progress::{TrainProgress, TrainStream};
pub(crate) use trainer::Trainer;

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
/// adapter.save("adapter".as_ref())?;
/// # Ok(()) }
/// ```
pub trait TrainableModel: TextModel {
    /// Begins a new adapter, which [`train`](Self::train) is to teach from now on. It changes nothing yet; one that begins as
    /// [`LoraConfig::initial`] is used by requests that name no adapter from now on.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the field at fault; an unknown target is answered with
    /// those that are known.
    fn apply_lora(&self, config: LoraConfig) -> Result<Box<dyn Adapter>>;

    /// Transformer layers.
    fn num_layers(&self) -> usize;

    /// Teaches the adapter that was applied last; without one, that of [`LoraConfig::default`].
    ///
    /// Returns at once. Training has a thread of its own and takes turns with the model's requests, which go first, layer
    /// by layer. Requests that name no adapter use the learned one once training has ended, or has been
    /// [evaluated](TrainConfig::eval_split); those that began before end as they began.
    ///
    /// The same examples, configurations and seeds give the same adapter, to the bit, on one machine and build.
    ///
    /// # Errors
    /// They end the stream: see [`TrainStream::result`]. [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the
    /// field at fault: `examples` if one has nothing to learn, or if another training is under way.
    ///
    /// # Cancel safety
    /// Dropping the stream ends training within one layer of the step under way, of which nothing is kept; the adapter is
    /// that of the step before, for requests as well. The same is left of a training that fails.
    fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream;
}

/// An adapter that a model learns.
pub trait Adapter: Send + Sync {
    /// The numbers that are learned.
    fn total_params(&self) -> usize;

    /// Writes what has been learned so far as a directory of [PEFT](https://github.com/huggingface/peft):
    /// `adapter_config.json` and `adapter_model.safetensors`. Whoever reads it meanwhile finds whole files.
    ///
    /// # Errors
    /// [`Error::InvalidModel`](crate::Error::InvalidModel) with the directory that cannot be written.
    fn save(&self, path: &Path) -> Result<()>;
}
