//! Micro-kernels: the inner loops of products. Each file here holds an algorithm's scalar version and its dispatch; the
//! folders hold the register tiles that all machines share, and each machine's instructions.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod bf16;
pub mod int8;
pub mod panels;
pub mod quantized;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod tiles;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
