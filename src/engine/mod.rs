//! The engine: continuous batching of requests on a model of our own. One thread tokenizes prompts, and one worker
//! packs the next tokens of all running sequences into shared forward passes. It knows no architecture.

mod background;
mod blocks;
mod compute_lock;
mod drafter;
mod handle;
mod penalties;
mod prefill_budget;
mod prompt_lookup;
mod sampler;
mod scheduler;
mod sequence;
mod tasks;
#[cfg(test)]
mod tests;
mod token_mask;
mod tokenizer_lanes;
mod tokenizer_thread;
mod worker;

pub use background::{BackgroundJobs, ComputeSlot, ModelLease};
use handle::EngineRequest;
pub use handle::{Engine, EngineOptions};
pub use scheduler::Limits;
