//! The CPU's own kernels, with SIMD dispatched at run time.
//!
//! A row's result depends on that row alone: sums run in an order that neither the other rows of a batch, nor the
//! number of threads, nor the instruction set can change.

mod arch;
pub mod attention;
pub mod dense;
pub mod elementwise;
mod isa;
mod layout;
mod memory;
mod multiversion;
pub mod quant;
pub mod threads;

pub use isa::Isa;

/// Pseudorandom values for tests, between ± `max`.
#[cfg(test)]
fn noise(len: usize, seed: usize, max: f32) -> Vec<f32> {
    (0..len).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) * max).collect()
}
