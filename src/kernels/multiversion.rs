//! Function multiversioning: plain code that compilers vectorize, compiled for each instruction set.

/// Defines functions with a version for each instruction set. `isa`, a last parameter that the macro adds, chooses the
/// version.
///
/// All versions give the same bits: the code says in which order it adds, and where it fuses a product with a sum.
macro_rules! multiversion {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        #[inline]
        #[allow(unsafe_code, reason = "functions with target features")]
        $vis fn $name($($arg: $ty,)* isa: $crate::kernels::Isa) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                plain($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                plain($($arg),*)
            }

            match isa {
                $crate::kernels::Isa::Scalar => plain($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Isa::Avx2 | $crate::kernels::Isa::AvxVnni => {
                    // SAFETY: `Isa` names an instruction set only where its features were detected.
                    unsafe { avx2($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Isa::Avx512 | $crate::kernels::Isa::Avx512Vnni | $crate::kernels::Isa::Avx512Bf16 => {
                    // SAFETY: as above.
                    unsafe { avx512($($arg),*) }
                }
                // All code of aarch64 machines is compiled for NEON.
                #[cfg(target_arch = "aarch64")]
                $crate::kernels::Isa::Neon | $crate::kernels::Isa::NeonDotprod => plain($($arg),*),
            }
        }
    )*};
}
pub(in crate::kernels) use multiversion;
