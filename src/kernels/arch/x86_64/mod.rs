//! The kernels of x86 machines. Integer sums are exact and floating-point lanes are those of the
//! scalar path, so all paths give the same bits.
#![allow(unsafe_code)]

pub mod bf16;
pub mod int8;
pub mod panels;
pub mod quantized;
