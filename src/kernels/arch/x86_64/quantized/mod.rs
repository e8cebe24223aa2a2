//! Products with panels of quantized weights, with AVX2 and AVX-512.

mod avx2;
mod avx512;
mod prefetch;

pub use avx2::panels_avx2;
pub use avx512::{panels_avx512, panels_vnni};
