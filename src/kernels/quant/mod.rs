//! Quantized matrices: ggml's and affine types, packed into panels, and their products.

mod activations;
mod affine;
mod ggml;
mod ggml_block;
mod matrix;
mod packing;
mod products;
#[cfg(test)]
mod tests;

pub use affine::Affine;
pub use ggml::GgmlType;
pub use matrix::QuantMatrix;
pub use products::{multiply_all, multiply_gated};
