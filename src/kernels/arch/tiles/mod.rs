//! What the kernels of all machines share: tiles of sums that stay in registers, whatever a machine's registers are.
#![allow(unsafe_code)]

pub mod bf16;
mod factors;
pub mod int8;
pub mod panels;
pub mod quantized;
