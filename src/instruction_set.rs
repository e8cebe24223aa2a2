//! The instruction sets that the CPU's kernels can run on.

/// An instruction set that the CPU's kernels run on. All give the same bits, at different speeds.
///
/// ```
/// use tokenflow::{InstructionSet, LoadConfig};
///
/// let all = InstructionSet::available();
/// assert_eq!(all[0], InstructionSet::Scalar);
/// let config = LoadConfig::new().instruction_set(all[0]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// The baseline of every machine.
    Scalar,
    /// AVX2, FMA and F16C of x86-64.
    Avx2,
    /// AVX2 with AVX-VNNI: dot products of 8-bit integers.
    AvxVnni,
    /// AVX2 with AVX-512 F, BW and VL.
    Avx512,
    /// AVX-512 with VNNI: dot products of 8-bit integers.
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16: dot products of bfloat16.
    Avx512Bf16,
    /// NEON of aarch64.
    Neon,
    /// NEON with dot products of 8-bit integers.
    NeonDotprod,
}

impl InstructionSet {
    /// All instruction sets of this machine, the best last.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_sets_begin_with_the_baseline_and_end_with_the_best() {
        let all = InstructionSet::available();
        assert!(all.is_sorted() && all[0] == InstructionSet::Scalar);
    }
}
