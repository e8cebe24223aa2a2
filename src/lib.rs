//! Large language models inside async Rust services.
//!
//! [`load_model`] gives a [`TextModel`]; its [`generate`](TextModel::generate) and
//! [`chat`](TextModel::chat) give a [`TokenStream`], a `Stream` of [`Token`]s.
//!
//! ```no_run
//! use futures::StreamExt;
//! use tokenflow::{GenerateConfig, LoadConfig, Message, load_model};
//!
//! # async fn run() -> tokenflow::Result<()> {
//! let model = load_model("SmolLM2-135M-Instruct.gguf", LoadConfig::new()).await?;
//! let mut answer = model.chat(&[Message::user("What is the capital of France?")], GenerateConfig::new());
//! while let Some(token) = answer.next().await {
//!     print!("{}", token.text);
//! }
//! # Ok(()) }
//! ```
//!
//! # How requests run
//! A model has one worker thread. In each forward pass it computes the next tokens of all running
//! requests, prompts in chunks beside answers, and hands the sampled tokens to their streams. The
//! calling task does none of this work: prompts are templated and tokenized on a thread of the model,
//! too. Requests with a common beginning share its keys and values, at the same time or later.
//!
//! What a request answers does not depend on the others, to the bit: not on what shares its passes, nor on
//! how its prompt was cut into chunks, what was cached, or whether it had to give its memory to others
//! for a while.
//!
//! A bounded number of requests waits ([`Error::Overloaded`] beyond it), in the order of their
//! [`priority`](GenerateConfig::priority) and arrival; [`deadline`](GenerateConfig::deadline) ends a
//! request wherever it is. [`TextModel::stats`] tells what the model does.
//!
//! # Adapters
//! [`TextModel::load_adapter`] adds an adapter (LoRA or DoRA) under a name, and [`GenerateConfig::adapter`] chooses it
//! for a request. Requests with different adapters share passes, and none shares keys and values with another
//! adapter's.
//!
//! # Training and inspection
//! [`TrainableModel::train`] learns an adapter, and [`AttentionInspector::inspect`] reads what a model computes. Both
//! run on threads of their own and take turns with the model's requests, which go first, layer by layer.
//!
//! # Cancel safety
//! Dropping a [`TokenStream`], or the future of [`TextModel::classify`] or
//! [`TextModel::batch_generate`], cancels its requests: nothing more is computed for them, and their
//! memory is free before the next pass. A stream that is not read pauses itself and no other.
//! Dropping the model ends all its streams with [`Error::Closed`].
//!
//! # Model files
//! They are untrusted input: everything in them is checked before it is used. Only regular files are read, so a named
//! pipe or a device in place of one is an error at once, and side files (configurations, tokenizers, templates,
//! indices) up to limits.
//!
//! No file is mapped into memory. Weights are read piece by piece while a model loads: a file that is cut short
//! meanwhile is an [`Error::InvalidModel`], and one whose bytes are changed gives weights of which some are the old
//! ones. Once
//! [`load_model`] or [`TextModel::load_adapter`] has returned, their files may be changed and removed.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod backend;
mod blocking;
mod config;
mod decoder;
mod discover;
mod engine;
mod error;
mod files;
#[cfg(doc)]
pub mod guide;
#[cfg(feature = "hub")]
pub mod hub;
mod inspect;
mod instruction_set;
mod kernels;
mod load;
mod memory;
mod merge;
mod message;
mod metrics;
mod model;
mod serde_seconds;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod text;
mod training;
mod weights;

pub use config::{
    ActivationType, Deadline, GenerateConfig, KvCacheType, LoadConfig, LoadProgress, ProgressFn, Quantize,
};
pub use discover::{DiscoveredModel, discover, try_discover};
pub use error::{Capability, Cause, Error, Result};
pub use inspect::{AttentionInspector, AttentionSnapshot, InspectConfig, Inspection};
pub use instruction_set::InstructionSet;
pub use load::{load_model, load_trainable};
pub use merge::merge_adapter;
pub use message::{Message, Role};
pub use metrics::{GenerateMetrics, ModelInfo, ModelStats};
pub use model::{BatchResult, ClassifyResult, TextModel};
pub use stream::{FinishReason, Token, TokenLogprobs, TokenSender, TokenStream};
pub use training::{
    Adapter, LoraConfig, OnBadExample, Schedule, TrainConfig, TrainExample, TrainProgress, TrainStream, TrainableModel,
};
pub use weights::{AdapterFile, LoraTensors};
