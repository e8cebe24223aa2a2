//! Threads: a pool for the forward passes of a model, and the loops that its threads share.

mod cores;
pub mod parallel;
pub mod pipeline;
mod pool;
pub mod strips;
mod task_range;

pub use cores::physical_cores;
pub use pool::{PoolScope, ThreadPool, current_num_threads};
