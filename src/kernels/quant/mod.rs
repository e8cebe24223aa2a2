//! Quantized matrices: formats of files, the layout that kernels read, and products.

pub mod activations;
mod affine;
pub mod ggml;
mod matrix;
pub mod packing;

pub use affine::Affine;
pub use ggml::GgmlType;
pub use matrix::{QuantMatrix, multiply_all, multiply_gated};
