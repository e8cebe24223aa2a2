//! The trait of models that train.

use async_trait::async_trait;

use super::TextModel;
use crate::{Adapter, LoraConfig, Result, TrainConfig, TrainExample, TrainStream};

/// A model that can be fine-tuned: every model of the cpu backend, with plain or quantized weights.
///
/// The weights are frozen; an adapter of some linear layers is trained ([LoRA](https://arxiv.org/abs/2106.09685)).
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
    /// Applies an adapter, which [`train`](Self::train) trains from now on. A new adapter does not change answers yet.
    /// One read from [`LoraConfig::initial`] becomes the default of requests that name no adapter.
    ///
    /// Returns a new adapter at once; a thread initializes its parameters, and [`Adapter::save`] waits for them. With
    /// [`LoraConfig::initial`] the call reads the files and prepares the adapter for requests: tens of milliseconds for
    /// small adapters, seconds with DoRA on large models. [`apply_lora_async`](Self::apply_lora_async) does not block.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the invalid field; the error of an unknown target
    /// lists the known ones.
    fn apply_lora(&self, config: LoraConfig) -> Result<Box<dyn Adapter>>;

    /// Like [`apply_lora`](Self::apply_lora) on a blocking thread; returns once the adapter is initialized. The
    /// provided method runs on the caller's thread.
    ///
    /// # Errors
    /// The errors of [`apply_lora`](Self::apply_lora).
    ///
    /// # Cancel safety
    /// The adapter may be applied even if the future is dropped.
    async fn apply_lora_async(&self, config: LoraConfig) -> Result<Box<dyn Adapter>> {
        self.apply_lora(config)
    }

    /// The number of transformer layers.
    fn num_layers(&self) -> usize;

    /// Trains the adapter that was applied last; without one, an adapter of [`LoraConfig::default`].
    ///
    /// Returns at once. Training runs on its own thread and yields to the model's requests after every layer. Requests
    /// that name no adapter use the trained one once the training has ended, or after each
    /// [evaluation](TrainConfig::eval_split); running requests keep the adapter that they began with.
    ///
    /// The same examples, configurations and seeds give the same adapter, bit for bit, on one machine and build.
    ///
    /// One training runs at a time. If the stream of the last one was dropped, this one starts when it has ended.
    ///
    /// A training that diverges ends with an error: the loss or the adapter is not finite, or the loss on a few of its
    /// examples stays more than 2 nats above twice the baseline, or above twice the loss before it rose. Requests,
    /// [`Adapter::save`] and checkpoints then have the last good adapter.
    ///
    /// # Errors
    /// Errors end the stream: see [`TrainStream::result`].
    /// - [`Error::TrainingInProgress`](crate::Error::TrainingInProgress) if another training runs and its stream was
    ///   not dropped.
    /// - [`Error::InvalidConfig`](crate::Error::InvalidConfig) names the invalid field: `examples`, with the index of a
    ///   bad example unless [`TrainConfig::on_bad_example`] skips it; `learning_rate` if training diverged.
    /// - [`Error::ChatTemplate`](crate::Error::ChatTemplate) names the index of a chat that the template refuses.
    ///
    /// # Cancel safety
    /// Dropping the stream ends the training within one layer of the current step, which is discarded. The adapter of
    /// the step before is checked and becomes the default of requests; [`TrainStream::stop`] waits for that. A
    /// training that fails ends the same way.
    fn train(&self, examples: Vec<TrainExample>, config: TrainConfig) -> TrainStream;
}
