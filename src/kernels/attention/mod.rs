//! Attention over a paged KV cache, and its gradients.

mod attend;
mod band;
mod floats;
pub mod gradient;
mod heads;
mod int16;
mod int8;
mod kv_blocks;
mod kv_dtype;
mod kv_int8;
mod micro_batches;
mod paged_cache;
mod scoring;
mod scratch;
mod sequence;
mod shared_cache;
mod softmax;
mod store;
mod tile;

pub use attend::attend;
pub use heads::{BLOCK_TOKENS, Heads};
pub use kv_blocks::CacheView;
pub use kv_dtype::KvDtype;
pub use micro_batches::MicroBatches;
pub use paged_cache::PagedCache;
pub use scoring::{AttentionScoring, slope};
pub use sequence::PagedSequence;
pub use shared_cache::SharedCache;
