//! The types that keys and values are stored in.

use bytemuck::allocation::try_zeroed_vec;
use half::{bf16, f16};

use super::heads::{BLOCK_TOKENS, Heads};
use crate::kernels::{
    Isa,
    layout::{element::Element, panels::PanelElement},
    memory::prefetch::prefetch,
};

/// The type that keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    F32,
    F16,
    Bf16,
    Int8,
}

impl KvDtype {
    /// Bytes of a block of one layer.
    pub fn block_bytes(self, heads: Heads) -> usize {
        fn bytes<T: KvElement>(heads: Heads) -> usize {
            T::block_len(heads).saturating_mul(size_of::<T>())
        }
        match self {
            Self::F32 => bytes::<f32>(heads),
            Self::F16 => bytes::<f16>(heads),
            Self::Bf16 => bytes::<bf16>(heads),
            Self::Int8 => bytes::<i8>(heads),
        }
    }

    /// Zeros for `blocks` blocks; `None` if the memory cannot be reserved.
    pub fn zeroed(self, heads: Heads, blocks: usize) -> Option<ByKvDtype> {
        fn zeroed<T: KvElement>(heads: Heads, blocks: usize) -> Option<Vec<T>> {
            try_zeroed_vec(blocks.checked_mul(T::block_len(heads))?).ok()
        }
        Some(match self {
            Self::F32 => ByKvDtype::F32(zeroed(heads, blocks)?),
            Self::F16 => ByKvDtype::F16(zeroed(heads, blocks)?),
            Self::Bf16 => ByKvDtype::Bf16(zeroed(heads, blocks)?),
            Self::Int8 => ByKvDtype::Int8(zeroed(heads, blocks)?),
        })
    }
}

/// A value for each [`KvDtype`]: by default, the elements of a cache.
#[derive(Clone, Copy)]
pub enum ByKvDtype<A = Vec<f32>, B = Vec<f16>, C = Vec<bf16>, D = Vec<i8>> {
    F32(A),
    F16(B),
    Bf16(C),
    Int8(D),
}

/// Evaluates an expression for any variant of [`ByKvDtype`].
macro_rules! with_kv_dtype {
    ($typed:expr, $of_type:ident => $result:expr) => {
        match $typed {
            $crate::kernels::attention::kv_dtype::ByKvDtype::F32($of_type) => $result,
            $crate::kernels::attention::kv_dtype::ByKvDtype::F16($of_type) => $result,
            $crate::kernels::attention::kv_dtype::ByKvDtype::Bf16($of_type) => $result,
            $crate::kernels::attention::kv_dtype::ByKvDtype::Int8($of_type) => $result,
        }
    };
}
pub(super) use with_kv_dtype;

/// A type of keys and values. In a block each KV head has its values, then its keys: the last panel of the values may
/// be read beyond their end.
pub trait KvElement: PanelElement {
    /// Elements of a head's keys in a block.
    fn keys_len(head_dim: usize) -> usize;
    /// Elements of a head's values in a block.
    fn values_len(head_dim: usize) -> usize;
    /// Prefetches the lines that [`store`](Self::store) writes, which stores would wait for one after another.
    fn prefetch(stored: [&[Self]; 2], token: usize, head_dim: usize);
    /// Stores the key and the value of a token, in the keys and values of a head.
    fn store(stored: [&mut [Self]; 2], token: usize, key_and_value: [&[f32]; 2], isa: Isa);

    /// Elements of a block.
    fn block_len(heads: Heads) -> usize {
        let Heads { num_kv_heads, head_dim, .. } = heads;
        Self::keys_len(head_dim).saturating_add(Self::values_len(head_dim)).saturating_mul(num_kv_heads)
    }
}

/// Floating-point types: values are `[BLOCK_TOKENS, head_dim]`, keys are a panel `[head_dim, BLOCK_TOKENS]`.
impl<T: Element> KvElement for T {
    fn keys_len(head_dim: usize) -> usize {
        head_dim.saturating_mul(BLOCK_TOKENS)
    }

    fn values_len(head_dim: usize) -> usize {
        head_dim.saturating_mul(BLOCK_TOKENS)
    }

    fn prefetch([keys, values]: [&[T]; 2], token: usize, head_dim: usize) {
        prefetch(keys);
        prefetch(&values[token * head_dim..][..head_dim]);
    }

    fn store([keys, values]: [&mut [T]; 2], token: usize, [key, value]: [&[f32]; 2], isa: Isa) {
        let mut rounded = [T::zeroed(); 64];
        for (key, keys) in key.chunks(rounded.len()).zip(keys.chunks_mut(rounded.len() * BLOCK_TOKENS)) {
            T::round(key, &mut rounded[..key.len()], isa);
            keys.chunks_exact_mut(BLOCK_TOKENS).zip(rounded).for_each(|(lanes, key)| lanes[token] = key);
        }
        T::round(value, &mut values[token * value.len()..][..value.len()], isa);
    }
}
