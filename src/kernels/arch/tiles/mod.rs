//! Register tiles: the loops that the kernels of all machines share, generic over their vector registers. The sums of a
//! tile stay in registers.

#![allow(unsafe_code, reason = "vector loads and stores by pointers")]

pub mod bf16;
mod factors;
pub mod int8;
pub mod panels;
pub mod quantized;
