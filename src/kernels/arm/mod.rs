//! The kernels of aarch64 machines, which give the same bits as those of x86 and for the same reasons.
#![allow(unsafe_code)]

pub mod brain;
pub mod pairs;
pub mod panels;
pub mod quantized;
