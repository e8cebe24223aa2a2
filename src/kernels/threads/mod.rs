//! Threads: a pool for the forward passes of a model, and the loops that share it.

pub mod parallel;
pub mod pipeline;
mod pool;

pub use pool::{PoolScope, ThreadPool, current_num_threads, physical_cores};
