//! Operations by the kernels of this crate, on `f32` values in memory. Gradients pass them where a tape records.

mod attention;
mod experts;
mod products;
mod rows;

pub use attention::{attend, attend_within};
pub use experts::mix_experts;
pub use products::{
    embed, multiply_all, multiply_gated, multiply_packed, multiply_panels, packed_to_vec, panels_to_vec,
};
pub use rows::{activate, add, normalize, rotate};
