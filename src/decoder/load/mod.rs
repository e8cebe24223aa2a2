//! From tensors of a checkpoint to the parts of a decoder: names are resolved, fused matrices cut, weights placed where
//! they are computed with, and the linear maps noted that adapters may change.

mod fused_rows;
mod loader;
mod projections;
mod tensor_names;

pub use loader::Loader;
pub use projections::MlpLinears;
