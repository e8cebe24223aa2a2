//! Dense matrices and their products, also with transposes for gradients.

mod matmul;
mod matrix;
mod rounding;
pub mod transposed;

pub use super::layout::element::ElementType;
pub use matmul::{product, transpose};
pub use matrix::DenseMatrix;
