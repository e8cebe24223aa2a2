//! Shared by the examples: arguments, the model to run, pictures, and errors that read well.

mod args;
mod failure;
mod models;
mod picture;

pub use args::{Args, Usage};
pub use failure::{Failure, Result};
pub use models::{smollm2, smollm2_gguf};
pub use picture::Picture;
pub use tokenflow::FinishReason;

/// A system message, without which small models repeat themselves.
pub const SYSTEM_MESSAGE: &str = "You are a helpful assistant.";

/// Explains why an answer ended.
pub fn explain(reason: Option<FinishReason>) -> &'static str {
    match reason {
        Some(FinishReason::Stop) => "the model ended its answer",
        Some(FinishReason::Length) => "the limit of tokens was reached",
        Some(FinishReason::Cancelled) => "cancelled",
        Some(FinishReason::Error) => "an error",
        _ => "not ended",
    }
}
