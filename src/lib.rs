//! Large language models inside async Rust services.
//!
//! [`load_model`] loads a [`TextModel`]; its [`chat`](TextModel::chat) and [`generate`](TextModel::generate) return a
//! [`TokenStream`], a `Stream` of [`Token`]s.
//!
//! ```no_run
//! use futures::StreamExt;
//! use tokenflow::{GenerateConfig, LoadConfig, Message, load_model};
//!
//! # async fn run() -> tokenflow::Result<()> {
//! let model = load_model("SmolLM2-360M-Instruct", LoadConfig::new()).await?;
//! let chat = [Message::system("You are a helpful assistant."), Message::user("What is the capital of France?")];
//! let config = GenerateConfig::new().repeat_penalty(1.1).penalty_window(64);
//! let mut answer = model.chat(&chat, config).into_results();
//! while let Some(token) = answer.next().await {
//!     print!("{}", token?.text);
//! }
//! # Ok(()) }
//! ```
//!
//! The [`guide`] has a page for each use, with code to start from: [streams](guide::streams), [axum](guide::axum),
//! [tonic](guide::tonic), [batches](guide::batch), [labels](guide::labels), [adapters](guide::adapters),
//! [training](guide::training), [inspection](guide::inspection), [overload](guide::overload), [tests](guide::testing).
//!
//! # How requests run
//! Each model has one worker thread. A forward pass computes the next tokens of all running requests (continuous
//! batching), with prompts in chunks beside answers (chunked prefill). Prompts are templated and tokenized on another
//! thread of the model; the calling task does neither. Requests with a common prefix share its keys and values, at the
//! same time or later (prefix caching in a paged KV cache).
//!
//! An answer does not depend on other requests, bit for bit: not on the batch, the chunks of its prompt, cache hits or
//! preemption.
//!
//! The queue is bounded ([`Error::Overloaded`]) and ordered by [`priority`](GenerateConfig::priority) and arrival. A
//! [`deadline`](GenerateConfig::deadline) ends a request in the queue and while it runs. [`TextModel::stats`] has the
//! gauges and counters of a model.
//!
//! # Adapters, training, inspection
//! [`TextModel::load_adapter`] loads a LoRA or DoRA adapter under a name; [`GenerateConfig::adapter`] selects it for a
//! request. Requests with different adapters share forward passes and no cache entries.
//!
//! [`TrainableModel::train`] trains an adapter, and [`AttentionInspector::inspect`] returns attention and hidden
//! states. Both run on threads of their own and yield to the model's requests after every layer.
//!
//! # Cancel safety
//! Dropping a [`TokenStream`], or the future of [`TextModel::classify`], [`TextModel::score`] or
//! [`TextModel::batch_generate`], cancels its requests: they leave the batch and free their memory before the next
//! forward pass. A stream that is not read pauses only itself. Dropping the model ends its streams with
//! [`Error::Closed`].
//!
//! # Model files
//! Model files are untrusted input: sizes, offsets and shapes are checked before use. Only regular files are opened,
//! and side files (configurations, tokenizers, templates, indices) have size limits.
//!
//! Files are read, not mapped. A file that is truncated while its model loads is an [`Error::InvalidModel`]; a file
//! whose bytes change meanwhile yields a mixture of old and new weights. Once [`load_model`] or
//! [`TextModel::load_adapter`] has returned, their files may be changed and removed.
//!
//! # Feature flags
//! | feature | adds |
//! |---|---|
//! | `hub` | `tokenflow::hub`: downloads from the Hugging Face Hub |
//! | `testing` | `tokenflow::testing`: a scripted model without weights |
//! | `cuda`, `metal` | devices, through candle; never run on hardware |
//! | `accelerate`, `mkl` | matrix libraries for candle's CPU operations |
//!
//! No feature is on by default. In debug builds, optimize the dependencies of your program, or models are a hundred
//! times slower:
//!
//! ```toml
//! [profile.dev.package."*"]
//! opt-level = 3
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

// For the tests that `tests/` and this crate share.
#[cfg(test)]
extern crate self as tokenflow;

mod adapters;
mod autograd;
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
#[cfg(test)]
mod recurrent_tests;
mod request;
mod results;
mod serde_seconds;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod text;
mod training;
mod weights;

pub use adapters::{AdapterFile, LoraTensors};
pub use config::{
    ActivationType, Deadline, GenerateConfig, KvCacheType, LoadConfig, LoadProgress, ProgressFn, Quantize,
};
pub use discover::{DiscoveredModel, discover, try_discover};
pub use error::{Capability, Cause, Error, Result};
pub use inspect::{AttentionSnapshot, InspectConfig, Inspection};
pub use instruction_set::InstructionSet;
pub use load::{load_model, load_trainable};
pub use merge::merge_adapter;
pub use message::{Message, Role};
pub use metrics::{GenerateMetrics, ModelInfo, ModelStats};
pub use model::{AttentionInspector, TextModel, TrainableModel};
pub use results::{BatchResult, ClassifyResult};
pub use stream::{FinishReason, Token, TokenLogprobs, TokenSender, TokenStream};
pub use training::{
    Adapter, LoraConfig, OnBadExample, Schedule, TrainConfig, TrainExample, TrainProgress, TrainStream,
};
