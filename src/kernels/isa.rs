//! The instruction sets that kernels are compiled for, chosen at run time.

use std::sync::LazyLock;

use crate::{Error, InstructionSet, Result};

/// An instruction set of this kind of machine, as the dispatchers of kernels match it.
///
/// Code outside tests takes an `Isa` from [`Isa::detect`], [`Isa::available`] or [`Isa::choose`] only, which give the
/// ones that the processor has: calls of the kernels are sound because of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Code without intrinsics, which compilers vectorize where they can.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with AVX-VNNI: dot products of 8-bit integers.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX2 with AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with VNNI: dot products of 8-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16: dot products of bfloat16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with dot products of 8-bit integers.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl Isa {
    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        static BEST: LazyLock<Isa> = LazyLock::new(|| Isa::available().pop().unwrap_or(Isa::Scalar));
        *BEST
    }

    /// All instruction sets of this machine, the best last.
    pub fn available() -> Vec<Self> {
        InstructionSet::available().into_iter().filter_map(Self::of).collect()
    }

    /// The requested instruction set, or the best one without a request.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if this machine lacks the requested one.
    pub fn choose(requested: Option<InstructionSet>) -> Result<Self> {
        let Some(set) = requested else { return Ok(Self::detect()) };
        let available = InstructionSet::available();
        Self::of(set)
            .filter(|_| available.contains(&set))
            .ok_or_else(|| Error::config("instruction_set", format!("{set:?}, and this machine has {available:?}")))
    }

    /// `None`: an instruction set of another kind of machine.
    fn of(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Scalar => Some(Self::Scalar),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Some(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni => Some(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Some(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => Some(Self::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Bf16 => Some(Self::Avx512Bf16),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => Some(Self::Neon),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDotprod => Some(Self::NeonDotprod),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Neon | InstructionSet::NeonDotprod => None,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Avx2
            | InstructionSet::AvxVnni
            | InstructionSet::Avx512
            | InstructionSet::Avx512Vnni
            | InstructionSet::Avx512Bf16 => None,
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_instruction_set_can_be_chosen() {
        let chosen: Result<Vec<Isa>> =
            InstructionSet::available().into_iter().map(|set| Isa::choose(Some(set))).collect();
        assert_eq!(chosen.unwrap(), Isa::available());
        assert_eq!(Isa::choose(None).unwrap(), Isa::detect());
    }

    #[test]
    fn an_instruction_set_of_another_machine_is_named_in_the_error() {
        let foreign = if cfg!(target_arch = "aarch64") { InstructionSet::Avx2 } else { InstructionSet::Neon };
        let error = Isa::choose(Some(foreign)).unwrap_err().to_string();
        let expected = format!("invalid instruction_set: {foreign:?}, and this machine has [Scalar");
        assert!(error.starts_with(&expected), "{error}");
    }
}
