//! What the CPU computes itself, outside candle, dispatched at run time. A row's result depends on
//! that row alone: sums run in an order that neither the other rows of a batch, nor the number of
//! threads, nor the instruction set can change.

/// Calls a function of plain code, compiled for an instruction set.
macro_rules! compiled_for {
    ($isa:expr, $name:ident($($arg:expr),*)) => {
        match $isa {
            $crate::kernels::Isa::Scalar => $name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Isa::Avx2 | $crate::kernels::Isa::AvxVnni => {
                $crate::kernels::x86::plain::avx2::$name($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Isa::Avx512 | $crate::kernels::Isa::Avx512Vnni | $crate::kernels::Isa::Avx512Bf16 => {
                $crate::kernels::x86::plain::avx512::$name($($arg),*)
            }
            // All code of these machines is compiled for NEON.
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::Isa::Neon | $crate::kernels::Isa::NeonDotprod => $name($($arg),*),
        }
    };
}

mod activations;
pub mod affine;
mod ahead;
#[cfg(target_arch = "aarch64")]
mod arm;
pub mod attention;
pub mod attention_gradient;
pub mod brain;
mod bytes;
mod codes;
pub mod dense;
mod dots;
pub mod ggml;
pub mod gradients;
pub mod logits;
mod math;
pub mod matmul;
pub mod paged_cache;
mod pairs;
pub mod panels;
pub mod pieces;
pub mod quantized;
mod resident;
pub mod rows;
mod softmax;
pub mod stages;
pub mod stored;
pub mod team;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tiles;
pub mod transposed;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::LazyLock;

/// The instruction sets there are kernels for. Only those of this machine come from [`Isa::available`], which is what makes
/// calls of the kernels sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What every machine has; compilers vectorise it where they can.
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with sums of products of 8-bit integers.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// With that, sums of products of 8-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// With that, products of bfloat16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With that, dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl Isa {
    /// The best one of this machine.
    pub fn detect() -> Self {
        static BEST: LazyLock<Isa> = LazyLock::new(|| Isa::available().pop().unwrap_or(Isa::Scalar));
        *BEST
    }

    /// All that this machine has, the best last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(
            not(any(target_arch = "x86_64", target_arch = "aarch64")),
            expect(unused_mut, reason = "other machines add nothing")
        )]
        let mut available = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if avx2 {
                available.push(Self::Avx2);
                if is_x86_feature_detected!("avxvnni") {
                    available.push(Self::AvxVnni);
                }
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                available.push(Self::Avx512);
                if is_x86_feature_detected!("avx512vnni") {
                    available.push(Self::Avx512Vnni);
                    if is_x86_feature_detected!("avx512bf16") {
                        available.push(Self::Avx512Bf16);
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            available.push(Self::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                available.push(Self::NeonDotprod);
            }
        }
        available
    }
}

/// Numbers for tests, between ± the greatest.
#[cfg(test)]
fn noise(len: usize, seed: usize, greatest: f32) -> Vec<f32> {
    (0..len).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) * greatest).collect()
}
