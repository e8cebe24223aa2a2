//! Products with AVX2. Weights are unpacked once for all tokens. Registers hold the sums of their 16 rows and of four tokens.

mod block;
mod dots;
mod panels;
mod vnni;

pub use panels::panels_avx2;
