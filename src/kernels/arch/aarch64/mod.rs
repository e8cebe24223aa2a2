//! Kernels for aarch64. Integer sums are exact and floating-point lanes add in the order of the scalar version, so all
//! versions give the same bits.

#![allow(unsafe_code, reason = "intrinsics and assembly")]

pub mod bf16;
pub mod int8;
pub mod panels;
pub mod quantized;
