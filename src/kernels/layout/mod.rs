//! Layouts: how operands lie in memory for the inner loops, and the types that describe products to them.

pub mod activations;
pub mod bf16;
pub mod codes;
pub mod element;
pub mod panels;
