//! The kernels of aarch64 machines, which give the same bits as those of x86 and for the same reasons.
#![allow(unsafe_code)]

pub mod bf16;
pub mod int8;
pub mod panels;
pub mod quantized;
