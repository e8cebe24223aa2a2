use crate::{Error, Result, kernels::Isa};

/// What the CPU's kernels run on. All give the same bits, at different speeds.
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
    /// What every machine has.
    Scalar,
    /// AVX2, FMA and F16C, of x86-64.
    Avx2,
    /// With that, AVX-VNNI: sums of products of 8-bit integers.
    AvxVnni,
    /// With AVX2, AVX-512 F, BW and VL.
    Avx512,
    /// With that, AVX-512 VNNI: sums of products of 8-bit integers.
    Avx512Vnni,
    /// With that, AVX-512 BF16: sums of products of bfloat16.
    Avx512Bf16,
    /// NEON, of aarch64.
    Neon,
    /// With that, dot products of bytes.
    NeonDotprod,
}

impl InstructionSet {
    /// Those of this machine, the best last.
    pub fn available() -> Vec<Self> {
        Isa::available().into_iter().map(Self::of).collect()
    }

    /// Its kernels, if they are among those that a machine has.
    pub(crate) fn among(self, available: &[Isa]) -> Result<Isa> {
        available.iter().copied().find(|isa| Self::of(*isa) == self).ok_or_else(|| {
            let known: Vec<Self> = available.iter().copied().map(Self::of).collect();
            Error::config("instruction_set", format!("{self:?}, and this machine has {known:?}"))
        })
    }

    fn of(isa: Isa) -> Self {
        match isa {
            Isa::Scalar => Self::Scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Self::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Self::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Self::Avx512Bf16,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Self::Neon,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Self::NeonDotprod,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_has_is_found_and_what_it_has_not_is_named() {
        let error = InstructionSet::Avx512Vnni.among(&[Isa::Scalar]).unwrap_err();
        assert_eq!(error.to_string(), "invalid instruction_set: Avx512Vnni, and this machine has [Scalar]");
        let all = InstructionSet::available();
        assert!(all.is_sorted() && all.contains(&InstructionSet::Scalar));
        let isas: Result<Vec<Isa>> = all.into_iter().map(|set| set.among(&Isa::available())).collect();
        assert_eq!(isas.unwrap(), Isa::available());
    }
}
