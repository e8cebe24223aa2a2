//! Element-wise and row-wise operations between products.

mod activation;
mod arithmetic;
pub mod logits;
pub mod math;
mod norm;
mod rope;
mod rows;
#[cfg(test)]
mod testing;

pub use activation::{Activation, activate, activate_gradient, activate_row};
pub use arithmetic::{add, add_to, cap, scale_and_cap};
pub use norm::{NormKind, NormParams, normalize, normalize_gradient};
pub use rope::{RopeStyle, RotationAngles, rotate};
