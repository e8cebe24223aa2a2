//! LoRA and DoRA adapters: their files, the linear maps that they change, adapters at work and in training.

mod adapted_rows;
mod file;
mod lora_adapter;
mod lora_targets;
mod mlx_lm;
mod peft;
mod registry;
mod tensor_reader;
mod trainable_lora;

pub use adapted_rows::AdaptedRows;
pub use file::{AdapterFile, LoraTensors};
pub use lora_adapter::LoraAdapter;
pub use lora_targets::{LoraTarget, LoraTargets, LoraTargetsBuilder, ModuleNames};
pub use registry::{AdapterId, Adapters, LoadedAdapter};
pub use trainable_lora::TrainableLora;
