//! The blocks of a cache, borrowed by several threads.

#![allow(unsafe_code, reason = "blocks of one slice that different threads read and write")]

use std::marker::PhantomData;

use half::{bf16, f16};

use super::{
    heads::Heads,
    kv_dtype::{ByKvDtype, KvElement},
    sequence::PagedSequence,
};
use crate::kernels::{layout::panels::LANES, memory::prefetch::Prefetcher};

/// Some sequences and the blocks that hold their keys and values.
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    heads: Heads,
    sequences: &'a [PagedSequence<'a>],
    blocks: AnyKvBlocks<'a>,
}

impl<'a> CacheView<'a> {
    pub(super) fn new(heads: Heads, sequences: &'a [PagedSequence<'a>], blocks: AnyKvBlocks<'a>) -> Self {
        Self { heads, sequences, blocks }
    }

    /// The heads, the sequences, and the blocks that hold their keys and values.
    pub fn into_parts(self) -> (Heads, &'a [PagedSequence<'a>], AnyKvBlocks<'a>) {
        (self.heads, self.sequences, self.blocks)
    }
}

/// Blocks of any stored type.
pub type AnyKvBlocks<'a> = ByKvDtype<KvBlocks<'a, f32>, KvBlocks<'a, f16>, KvBlocks<'a, bf16>, KvBlocks<'a, i8>>;

/// Blocks of any stored type, for writing.
pub type AnyKvBlocksMut<'a> =
    ByKvDtype<KvBlocksMut<'a, f32>, KvBlocksMut<'a, f16>, KvBlocksMut<'a, bf16>, KvBlocksMut<'a, i8>>;

/// Blocks for reading. Only the blocks that the sequences of a [`CacheView`] read may be accessed.
#[derive(Clone, Copy)]
pub struct KvBlocks<'a, T> {
    heads: Heads,
    first: *const T,
    count: usize,
    borrowed: PhantomData<&'a [T]>,
}

// SAFETY: it is a shared slice, of which nobody writes the blocks that are read.
unsafe impl<T: Sync> Sync for KvBlocks<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for KvBlocks<'_, T> {}

impl<'a, T: KvElement> KvBlocks<'a, T> {
    pub fn new(heads: Heads, stored: &'a [T]) -> Self {
        let count = stored.len() / T::block_len(heads);
        Self { heads, first: stored.as_ptr(), count, borrowed: PhantomData }
    }

    /// The keys of a head in a block, and its values with the elements behind them that the last panel reads.
    ///
    /// # Safety
    /// A sequence of the [`CacheView`] reads the block: other blocks may be written meanwhile.
    #[inline]
    pub unsafe fn get(&self, block: usize, kv_head: usize) -> (&'a [T], &'a [T]) {
        let Heads { num_kv_heads, head_dim, .. } = self.heads;
        assert!(block < self.count && kv_head < num_kv_heads);
        let (values, keys) = (T::values_len(head_dim), T::keys_len(head_dim));
        let at = (block * num_kv_heads + kv_head) * (values + keys);
        // SAFETY: the range is inside the borrowed slice, and nobody writes to blocks that sequences read.
        let both = unsafe { std::slice::from_raw_parts(self.first.add(at), values + keys) };
        (&both[values..], &both[..values + (self.heads.padded_dim() - head_dim) * T::STEP_LEN / LANES])
    }

    /// A prefetcher of a head's keys and values in these blocks, over `work` units of work.
    pub fn prefetcher<'b>(&self, blocks: &'b [u32], kv_head: usize, work: usize) -> Prefetcher<'b> {
        let Heads { num_kv_heads, head_dim, .. } = self.heads;
        let len = T::values_len(head_dim) + T::keys_len(head_dim);
        let first = self.first.wrapping_add(kv_head * len);
        let bytes = len * size_of::<T>();
        Prefetcher::new(blocks, first.cast(), bytes * num_kv_heads, bytes, work)
    }
}

/// Blocks for writing, by several threads that each write other blocks.
pub struct KvBlocksMut<'a, T> {
    first: *mut T,
    count: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> Clone for KvBlocksMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for KvBlocksMut<'_, T> {}

impl<'a, T: KvElement> KvBlocksMut<'a, T> {
    pub fn new(heads: Heads, stored: &'a mut [T]) -> Self {
        let count = stored.len() / T::block_len(heads);
        Self { first: stored.as_mut_ptr(), count, borrowed: PhantomData }
    }

    /// The same blocks for reading.
    pub fn read(&self, heads: Heads) -> KvBlocks<'_, T> {
        KvBlocks { heads, first: self.first, count: self.count, borrowed: PhantomData }
    }

    /// A block.
    ///
    /// # Safety
    /// Nobody else accesses this block while the slice lives.
    pub unsafe fn get(&self, heads: Heads, block: usize) -> &'a mut [T] {
        assert!(block < self.count);
        let len = T::block_len(heads);
        // SAFETY: the range is inside the borrowed slice, and exclusive as required above.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(block * len), len) }
    }
}
