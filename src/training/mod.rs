//! Fine-tuning: low-rank adapters ([LoRA](https://arxiv.org/abs/2106.09685)) learned beside the requests of the same
//! model.

mod adamw;
mod adapter_init;
mod chat_samples;
mod checkpoint;
mod dataset;
mod divergence;
mod example;
mod fnv;
mod forward_backward;
mod lora_config;
mod random;
mod run;
mod train_config;
mod train_stream;
mod trainable_model;
mod trained_adapter;
mod trainer;

pub use example::TrainExample;
pub use lora_config::LoraConfig;
pub use train_config::{OnBadExample, Schedule, TrainConfig};
pub use train_stream::{TrainProgress, TrainStream};
pub use trainable_model::{Adapter, TrainableModel};
pub(crate) use trainer::Trainer;
