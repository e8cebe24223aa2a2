//! Plain code that compilers vectorise, compiled for each instruction set.

use half::{bf16, f16};

use crate::kernels::{
    attention::{gradient::QueryRow, kv_int8::TokenScale, softmax::SoftmaxState},
    elementwise::rows::{Activation, Norm, RopeStyle},
    memory::prefetch::Prefetcher,
    quant::{
        activations::{BlockScale, GROUP},
        ggml::Format,
    },
};

/// Defines a module of functions that do as plain ones of the same name, compiled with some features.
macro_rules! compiled {
    ($module:ident, $features:literal: $(fn $name:ident = $plain:path, ($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        pub mod $module {
            use super::*;

            $(pub fn $name($($arg: $ty),*) $(-> $ret)? {
                #[target_feature(enable = $features)]
                fn compiled($($arg: $ty),*) $(-> $ret)? {
                    $plain($($arg),*)
                }
                // SAFETY: `Isa` names an instruction set only where its features were detected.
                unsafe { compiled($($arg),*) }
            })*
        }
    };
}

macro_rules! all {
    ($module:ident, $features:literal) => {
        compiled! { $module, $features:
            fn round_f16 = crate::kernels::arch::panels::round_f16, (values: &[f32], rounded: &mut [f16]);
            fn round_bf16 = crate::kernels::arch::panels::round_bf16, (values: &[f32], rounded: &mut [bf16]);
            fn round_to_codes = crate::kernels::attention::kv_int8::round_to_codes, (x: &[f32], codes: &mut [i8]) -> bf16;
            fn round_to_factors = crate::kernels::arch::int8::round_to_factors,
                (x: &[f32], greatest_factor: i16, factors: &mut [i16]) -> f32;
            fn scale_sums = crate::kernels::arch::int8::scale_sums, (sums: &[i32], step: f32, out: &mut [f32]);
            fn scale_scores = crate::kernels::attention::kv_int8::scale_scores,
                (sums: &[i32], step: f32, scales: &[TokenScale], out: &mut [f32]);
            fn weigh_scales = crate::kernels::attention::kv_int8::weigh_scales, (weights: &mut [f32], scales: &[TokenScale]);
            fn merge_values = crate::kernels::attention::softmax::merge_values,
                (values: &mut [f32], softmax: SoftmaxState, next_values: &[f32], next: SoftmaxState) -> SoftmaxState;
            fn softmax_lanes = crate::kernels::attention::softmax::softmax_lanes,
                (scores: &mut [f32], ahead: &mut Prefetcher<'_>) -> (f32, f32);
            fn weigh_row = crate::kernels::attention::gradient::weigh_row,
                (row: &QueryRow<'_>, weights: &mut [f32], slopes: &mut [f32]);
            fn normalise_piece = crate::kernels::elementwise::rows::normalise_piece, (x: &[f32], norm: Norm<'_>, out: &mut [f32]);
            fn rotate_heads = crate::kernels::elementwise::rows::rotate_heads,
                (heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], by: RopeStyle);
            fn activate_row = crate::kernels::elementwise::rows::activate_row,
                (x: &mut [f32], up: Option<&[f32]>, activation: Activation);
            fn normalise_gradient = crate::kernels::elementwise::gradients::normalise_gradient,
                (x: &[f32], norm: Norm<'_>, out: &mut [f32]);
            fn activate_gradient = crate::kernels::elementwise::gradients::activate_gradient,
                (x: &[f32], up: Option<&[f32]>, activation: Activation, out: &mut [f32]);
            fn add_row = crate::kernels::elementwise::rows::add_row, (x: &mut [f32], y: &[f32], scale: f32);
            fn cap = crate::kernels::elementwise::rows::cap, (x: &mut [f32], softcap: f32);
            fn quantize_tile = crate::kernels::quant::activations::quantize_tile,
                (x: &[f32], columns: usize, format: Format, codes: &mut [[i8; GROUP]], scales: &mut [BlockScale]);
            fn keep_what_rounding_loses = crate::kernels::quant::activations::keep_what_rounding_loses, (x: &mut [f32]);
            fn round_row = crate::kernels::arch::bf16::round_row, (x: &[f32], pairs: &mut [u32]);
            fn round_widened = crate::kernels::arch::bf16::round_widened, (x: &[f32], pairs: &mut [[f32; 2]]);
            fn greatest_of = crate::kernels::elementwise::logits::greatest_of, (logits: &[f32]) -> Option<f32>;
            fn weigh_chunk = crate::kernels::elementwise::logits::weigh_chunk,
                (logits: &[f32], greatest: f32, temperature: f32, weights: &mut [f32]) -> f32;
        }
    };
}

all!(avx2, "avx2,fma,f16c");
all!(avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vl");
