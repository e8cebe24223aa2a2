//! Fine-tuning of low-rank adapters ([LoRA](https://arxiv.org/abs/2106.09685)) beside the requests of the same model.

mod adamw;
mod adapter;
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
mod run_state;
mod train_config;
mod train_stream;
mod trained_adapter;
mod trainer;

pub use adapter::Adapter;
pub use example::TrainExample;
pub use lora_config::LoraConfig;
pub use train_config::{OnBadExample, Schedule, TrainConfig};
pub use train_stream::{TrainProgress, TrainStream};
pub(crate) use trainer::Trainer;
