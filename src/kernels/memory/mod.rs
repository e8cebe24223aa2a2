//! Memory: prefetching, and the buffers of weights.

pub mod prefetch;
mod weight_buffer;

pub use weight_buffer::WeightBuffer;
