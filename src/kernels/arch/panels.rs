//! Products of floating-point panels: the scalar version, and the choice of a machine's.

use crate::kernels::{
    Isa,
    layout::{
        element::Element,
        panels::{Accumulators, LANES, PanelElement, PanelProduct},
    },
    memory::prefetch::Prefetcher,
};

impl<T: Element> PanelElement for T {
    type Factor = f32;
    type Sum = f32;
    const STEP_LEN: usize = LANES;

    fn add_product(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>, isa: Isa) {
        match isa {
            Isa::Scalar => add_scalar(product, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => super::x86_64::panels::add_avx2(product, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => super::x86_64::panels::add_avx512(product, sums, ahead),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod => super::aarch64::panels::add_neon(product, sums, ahead),
        }
    }
}

fn add_scalar<T: Element>(product: &PanelProduct<'_, T>, mut sums: Accumulators<'_, f32>) {
    sums.begin(product);
    product.for_each_step(|row, panel, factor, values| {
        let sums = &mut sums.sums[row * sums.stride + panel * LANES..][..LANES];
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = factor.mul_add(value.to_f32(), *sum);
        }
    });
}
