//! Attention over a paged KV cache, and its gradients.

mod attend;
mod band;
mod floats;
pub mod gradient;
mod heads;
mod int16;
mod int8;
mod kv_dtype;
mod kv_int8;
mod paged_cache;
mod scoring;
mod scratch;
mod softmax;
mod tile;

pub use attend::attend;
pub use heads::{BLOCK_TOKENS, Heads};
pub use kv_dtype::KvDtype;
pub use paged_cache::{CacheView, MicroBatches, PagedCache, PagedSequence, SharedCache};
pub use scoring::{Scoring, slope};
