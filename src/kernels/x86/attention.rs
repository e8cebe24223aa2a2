use crate::kernels::attention::softmax_lanes;

/// As `softmax_lanes`. The machine must have AVX2 and FMA, which `Isa::detect` made sure of.
pub fn softmax_avx2(scores: &mut [f32]) -> (f32, f32) {
    #[target_feature(enable = "avx2,fma")]
    fn softmax(scores: &mut [f32]) -> (f32, f32) {
        softmax_lanes(scores)
    }
    // SAFETY: `Isa::Avx2` and better ones exist only where these were detected.
    unsafe { softmax(scores) }
}

/// As `softmax_lanes`. The machine must have AVX-512F.
pub fn softmax_avx512(scores: &mut [f32]) -> (f32, f32) {
    #[target_feature(enable = "avx512f,fma")]
    fn softmax(scores: &mut [f32]) -> (f32, f32) {
        softmax_lanes(scores)
    }
    // SAFETY: as above, with `Isa::Avx512Vnni`.
    unsafe { softmax(scores) }
}
