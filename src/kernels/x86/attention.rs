use crate::kernels::attention::Group;

/// As `Group::attend`. The machine must have AVX2, which `Isa::detect` made sure of.
pub fn avx2(group: &Group<'_>, out: &mut [f32]) {
    #[target_feature(enable = "avx2")]
    fn attend(group: &Group<'_>, out: &mut [f32]) {
        group.attend(out);
    }
    // SAFETY: `Isa::Avx2` and better ones exist only where AVX2 was detected.
    unsafe { attend(group, out) }
}
