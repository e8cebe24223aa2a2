//! Attention over a paged KV cache, and its gradients.

mod attend;
mod floats;
pub mod gradient;
mod heads;
mod int8;
mod kv_dtype;
pub mod kv_int8;
mod paged_cache;
pub mod softmax;
mod tile;

pub use attend::{Scoring, attend, slope};
pub use heads::{BLOCK_TOKENS, Heads};
pub use kv_dtype::KvDtype;
pub use paged_cache::{CacheView, MicroBatches, PagedCache, PagedSequence, SharedCache};
