//! Element-wise and row-wise operations between products.

pub mod gradients;
pub mod logits;
pub mod math;
pub mod rows;
