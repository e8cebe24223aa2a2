//! A cache that several threads store to and read from.

#![allow(unsafe_code, reason = "blocks of one slice that different threads read and write")]

use std::sync::atomic::{AtomicU8, Ordering};

use super::{
    heads::Heads,
    kv_blocks::{AnyKvBlocksMut, CacheView},
    kv_dtype::{ByKvDtype, with_kv_dtype},
    micro_batches::{MicroBatch, MicroBatches},
    sequence::PagedSequence,
    store::{prefetch_row, store_row},
};
use crate::kernels::Isa;

/// The KV cache of a layer while threads store the rows of [`MicroBatches`] and attend to them.
pub struct SharedCache<'a> {
    heads: Heads,
    micro_batches: &'a MicroBatches<'a>,
    blocks: AnyKvBlocksMut<'a>,
    /// The state of each micro-batch: 0, [`BEING_STORED`] or [`STORED`].
    states: Vec<AtomicU8>,
}

const BEING_STORED: u8 = 1;
const STORED: u8 = 2;

// SAFETY: a block is written for one micro-batch only, by the one thread that has changed its state to `BEING_STORED`,
// and read by threads that have found all micro-batches `STORED` that write to it.
unsafe impl Sync for SharedCache<'_> {}
// SAFETY: as above.
unsafe impl Send for SharedCache<'_> {}

impl<'a> SharedCache<'a> {
    pub(super) fn new(heads: Heads, micro_batches: &'a MicroBatches<'a>, blocks: AnyKvBlocksMut<'a>) -> Self {
        let states = (0..micro_batches.len()).map(|_| AtomicU8::default()).collect();
        Self { heads, micro_batches, blocks, states }
    }
}

impl SharedCache<'_> {
    /// Stores the keys and values of a micro-batch, `[rows, num_kv_heads * head_dim]`.
    ///
    /// # Panics
    /// If the micro-batch was stored before.
    pub fn store(&self, index: usize, keys: &[f32], values: &[f32], isa: Isa) {
        assert_eq!(
            self.states[index].swap(BEING_STORED, Ordering::Relaxed),
            0,
            "micro-batch {index} was stored before"
        );
        let (heads, width) = (self.heads, self.heads.num_kv_heads * self.heads.head_dim);
        let sequences = &self.micro_batches.get(index).sequences;
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        assert_eq!([keys.len(), values.len()], [rows * width; 2]);
        let slots = || sequences.iter().flat_map(PagedSequence::slots);
        with_kv_dtype!(self.blocks, blocks => {
            // SAFETY: this micro-batch alone writes to its blocks, nobody reads them before it is stored, and this
            // function has one slice at a time.
            let block = |block: usize| unsafe { blocks.get(heads, block) };
            slots().for_each(|slot| prefetch_row(heads, block(slot.block), slot.token));
            for (slot, (keys, values)) in slots().zip(keys.chunks(width).zip(values.chunks(width))) {
                store_row(heads, block(slot.block), slot.token, [keys, values], isa);
            }
        });
        self.states[index].store(STORED, Ordering::Release);
    }

    /// The cache as attention of a micro-batch reads it.
    ///
    /// # Panics
    /// Unless the micro-batch and all that it reads from are stored.
    pub fn view(&self, index: usize) -> CacheView<'_> {
        let (heads, MicroBatch { sequences, reads_from }) = (self.heads, self.micro_batches.get(index));
        let are_stored = self.states[*reads_from..=index].iter().all(|state| state.load(Ordering::Acquire) == STORED);
        assert!(are_stored, "micro-batch {index} reads what is not stored");
        let blocks = match &self.blocks {
            ByKvDtype::F32(blocks) => ByKvDtype::F32(blocks.read(heads)),
            ByKvDtype::F16(blocks) => ByKvDtype::F16(blocks.read(heads)),
            ByKvDtype::Bf16(blocks) => ByKvDtype::Bf16(blocks.read(heads)),
            ByKvDtype::Int8(blocks) => ByKvDtype::Int8(blocks.read(heads)),
        };
        CacheView::new(heads, sequences, blocks)
    }
}
