//! Products of 16-bit factors and 8-bit codes in pairs, which integer instructions multiply and add. Sums are exact,
//! and so the same in any order.

use crate::kernels::{
    Isa,
    layout::panels::{Accumulators, LANES, PanelElement, PanelProduct},
    memory::prefetch::Prefetcher,
};

impl PanelElement for i8 {
    type Factor = [i16; 2];
    type Sum = i32;
    /// A pair of codes for each lane.
    const STEP_LEN: usize = 2 * LANES;

    fn add_product(product: &PanelProduct<'_, i8>, sums: Accumulators<'_, i32>, ahead: &mut Prefetcher<'_>, isa: Isa) {
        match isa {
            Isa::Scalar => add_scalar(product, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::x86_64::int8::add_avx2(product, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => super::x86_64::int8::add_avx_vnni(product, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::x86_64::int8::add_avx512(product, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512Bf16 => super::x86_64::int8::add_vnni(product, sums, ahead),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod => super::aarch64::int8::add_neon(product, sums, ahead),
        }
    }
}

fn add_scalar(product: &PanelProduct<'_, i8>, mut sums: Accumulators<'_, i32>) {
    sums.begin(product);
    product.for_each_step(|row, panel, [first, second], codes| {
        let sums = &mut sums.sums[row * sums.stride + panel * LANES..][..LANES];
        for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<2>().0) {
            let [one, other] = codes.map(i32::from);
            *sum = sum.wrapping_add(i32::from(*first) * one + i32::from(*second) * other);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::layout::panels::Panels;

    #[test]
    fn every_path_gives_the_sums_of_products() {
        let integer = |i: usize, greatest: i64| ((i * 7919 % 10_007) as i64 % (2 * greatest + 1) - greatest) as i32;
        for (rows, panels, pieces, steps) in
            [(1, 1, 1, 3), (3, 4, 4, 8), (7, 5, 2, 8), (2, 9, 1, 32), (6, 3, 3, 1), (1, 6, 2, 7)]
        {
            let (width, panel_stride) = (pieces * steps, panels * 32 + 2);
            let factors: Vec<[i16; 2]> =
                (0..rows * width).map(|i| [2 * i, 2 * i + 1].map(|i| integer(i, 32_767) as i16)).collect();
            let codes: Vec<i8> = (0..pieces * steps * panel_stride).map(|i| integer(i + 5, 128) as i8).collect();
            let slices: Vec<&[i8]> = (0..pieces).map(|piece| &codes[piece * steps * panel_stride..]).collect();
            let product = PanelProduct {
                factors: &factors,
                factor_stride: width,
                rows,
                panels: Panels::Beside(panels, &slices),
                steps,
                panel_stride,
            };
            let before: Vec<i32> = (0..rows * panels * LANES).map(|i| integer(i, 1000)).collect();
            let mut exact = before.clone();
            for (at, sum) in exact.iter_mut().enumerate() {
                let (row, panel, lane) = (at / (panels * LANES), at / LANES % panels, at % LANES);
                for step in 0..width {
                    let codes = &codes[step * panel_stride + panel * 32 + 2 * lane..];
                    let [one, other] = factors[row * width + step].map(i32::from);
                    *sum += one * i32::from(codes[0]) + other * i32::from(codes[1]);
                }
            }
            for isa in Isa::available() {
                let mut sums = before.clone();
                product.add_to(&mut sums, panels * LANES, isa);
                assert_eq!(sums, exact, "{isa:?}, {rows} rows, {panels} panels, {pieces} pieces, {steps} steps");
            }
        }
    }
}
