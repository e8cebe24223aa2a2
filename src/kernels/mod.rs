//! The CPU's own kernels, with SIMD dispatched at run time.
//!
//! A row's result depends on that row alone: sums run in an order that neither the other rows of a batch, nor the number of
//! threads, nor the instruction set can change.

/// Calls a function of plain code, compiled for an instruction set.
macro_rules! compiled_for {
    ($isa:expr, $name:ident($($arg:expr),*)) => {
        match $isa {
            $crate::kernels::Isa::Scalar => $name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Isa::Avx2 | $crate::kernels::Isa::AvxVnni => {
                $crate::kernels::arch::x86_64::plain::avx2::$name($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Isa::Avx512 | $crate::kernels::Isa::Avx512Vnni | $crate::kernels::Isa::Avx512Bf16 => {
                $crate::kernels::arch::x86_64::plain::avx512::$name($($arg),*)
            }
            // All code of these machines is compiled for NEON.
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::Isa::Neon | $crate::kernels::Isa::NeonDotprod => $name($($arg),*),
        }
    };
}

mod arch;
pub mod attention;
pub mod dense;
pub mod elementwise;
mod isa;
mod memory;
pub mod quant;
pub mod threads;

pub use elementwise::{gradients, logits, rows};
pub use isa::Isa;

/// Pseudorandom values for tests, between ± `max`.
#[cfg(test)]
fn noise(len: usize, seed: usize, max: f32) -> Vec<f32> {
    (0..len).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) * max).collect()
}
