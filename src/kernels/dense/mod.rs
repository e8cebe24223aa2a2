//! Dense matrices and their products, also with transposes for gradients.

mod matmul;
mod matrix;
pub mod transposed;

pub use super::arch::panels::ElementType;
pub use matmul::{product, transpose};
pub use matrix::DenseMatrix;
