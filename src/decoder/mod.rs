//! The forward pass: one decoder that a per-architecture [`Spec`] configures. It knows tokens, positions and cache
//! slots, but no request, queue or channel.

mod arch;
mod attention;
mod attention_capture;
mod batch;
mod forward;
#[cfg(test)]
mod gated_average;
mod kv_cache;
mod layer;
mod layout;
mod linear;
mod load;
mod mixer;
mod mlp;
mod moe;
mod network;
mod norm;
mod ops;
#[cfg(test)]
mod output_tests;
mod pass;
mod recurrence;
mod rope;
mod router;
mod run;
mod spec;
mod split;
mod state_cache;

pub use arch::{model_type, spec};
pub use attention_capture::AttentionCapture;
pub use batch::{Batch, Outputs, Span, SpanStates, StateSave};
pub use forward::{Decoder, Forward, Placement};
pub use kv_cache::{BLOCK_TOKENS, CacheSize};
pub use network::Network;
pub use ops::Ops;
pub use pass::Pass;
pub use spec::Spec;
