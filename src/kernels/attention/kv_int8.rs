//! Keys and values of 8 bits: codes, with a scale for each token's key or value of a head.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut, from_bytes};
use half::bf16;
use smallvec::{SmallVec, smallvec};

use super::{heads::BLOCK_TOKENS, kv_dtype::KvElement};
use crate::kernels::{
    Isa,
    elementwise::math::{max_abs, round_to_int},
    layout::panels::PanelElement,
    memory::prefetch::prefetch,
    multiversion::multiversion,
};

/// Bytes of the scales of a block's tokens, which have 16 bits each.
pub const SCALES_LEN: usize = BLOCK_TOKENS * 2;
/// The greatest magnitude that is stored, so that no product of a code and a scale is infinite.
const GREATEST: f32 = 1e38;

/// Values are the scales of the tokens, then codes `[BLOCK_TOKENS / 2, head_dim, 2]`. Keys are codes
/// `[head_dim / 2, BLOCK_TOKENS, 2]`, then scales. Both are pairs, as integer instructions multiply and add them.
impl KvElement for i8 {
    fn keys_len(head_dim: usize) -> usize {
        head_dim.next_multiple_of(2).saturating_mul(BLOCK_TOKENS).saturating_add(SCALES_LEN)
    }

    fn values_len(head_dim: usize) -> usize {
        head_dim.saturating_mul(BLOCK_TOKENS).saturating_add(SCALES_LEN)
    }

    fn prefetch([keys, values]: [&[i8]; 2], token: usize, head_dim: usize) {
        prefetch(keys);
        prefetch(&values[..SCALES_LEN]);
        prefetch(&values[SCALES_LEN + token / 2 * 2 * head_dim..][..2 * head_dim]);
    }

    fn store([keys, values]: [&mut [i8]; 2], token: usize, [key, value]: [&[f32]; 2], isa: Isa) {
        let head_dim = key.len();
        let mut codes: SmallVec<[i8; 256]> = smallvec![0; head_dim.next_multiple_of(2)];
        let scale = round_to_codes(key, &mut codes[..head_dim], isa);
        let (stored, scales) = keys.split_at_mut(keys.len() - SCALES_LEN);
        stored.chunks_exact_mut(Self::STEP_LEN).zip(codes.chunks_exact(2)).for_each(|(lanes, pair)| {
            lanes[2 * token..][..2].copy_from_slice(pair);
        });
        set_scale(scales, token, scale);
        let scale = round_to_codes(value, &mut codes[..head_dim], isa);
        let (scales, stored) = values.split_at_mut(SCALES_LEN);
        let pairs = stored[token / 2 * 2 * head_dim..][..2 * head_dim].chunks_exact_mut(2);
        pairs.zip(codes).for_each(|(pair, code)| pair[token % 2] = code);
        set_scale(scales, token, scale);
    }
}

/// A stored scale: the bits of a bfloat16.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
pub struct TokenScale([u8; 2]);

impl TokenScale {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(self.0)) << 16)
    }
}

/// The scales of a block's keys.
#[inline]
pub fn key_scales(keys: &[i8]) -> [TokenScale; BLOCK_TOKENS] {
    *from_bytes(cast_slice(&keys[keys.len() - SCALES_LEN..]))
}

/// The scales of a block's values.
#[inline]
pub fn value_scales(values: &[i8]) -> [TokenScale; BLOCK_TOKENS] {
    *from_bytes(cast_slice(&values[..SCALES_LEN]))
}

fn set_scale(scales: &mut [i8], token: usize, scale: bf16) {
    cast_slice_mut(scales)[token] = TokenScale(scale.to_le_bytes());
}

multiversion! {
    /// Rounds to the nearest of 255 steps between ± the greatest magnitude, or a little more: the step, which is
    /// returned, is rounded up to bfloat16.
    pub fn round_to_codes(x: &[f32], codes: &mut [i8]) -> bf16 {
        let scale = scale_for(max_abs(x));
        let inverse = if scale == bf16::ZERO { 0.0 } else { scale.to_f32().recip() };
        for (code, value) in codes.iter_mut().zip(x) {
            *code = round_to_int((value * inverse).clamp(-127.0, 127.0)) as i8;
        }
        scale
    }
}

/// The least bfloat16 of which 127 times is not less than `greatest`.
#[inline(always)]
fn scale_for(greatest: f32) -> bf16 {
    if greatest.is_nan() {
        return bf16::NAN;
    }
    let scale = greatest.min(GREATEST) / 127.0;
    if scale < f32::MIN_POSITIVE {
        return bf16::ZERO;
    }
    bf16::from_bits(((scale.to_bits() + 0xffff) >> 16) as u16)
}

multiversion! {
    /// Writes the sums times `step` and the scales of their tokens.
    pub fn scale_scores(sums: &[i32], step: f32, scales: &[TokenScale], out: &mut [f32]) {
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = *sum as f32 * (step * scale.to_f32());
        }
    }
}

multiversion! {
    /// Multiplies weights with the scales of their tokens.
    pub fn weigh_scales(weights: &mut [f32], scales: &[TokenScale]) {
        weights.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale.to_f32());
    }
}
