//! Reverse-mode differentiation of operations on rows: a tape records them, and gradients go back along it.

mod differentiable;
mod tape;

pub use differentiable::{
    binary, composed, cross_entropy, linear, rows_of, ternary, unary, values, values_of, with_f32,
};
pub use tape::{Gradients, Tape, is_tracked, note};
