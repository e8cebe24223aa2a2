//! Quantized products with AVX2. Weights are unpacked once for all tokens, and registers hold the sums of 16 rows and
//! four tokens.

mod block;
mod dots;
mod panels;
mod vnni;

pub use panels::panels_avx2;
