//! The paged KV cache of a layer ([PagedAttention](https://arxiv.org/abs/2309.06180)): keys and values in blocks of
//! [`BLOCK_TOKENS`](super::BLOCK_TOKENS) tokens, which sequences hold.

use super::{
    heads::Heads,
    kv_blocks::{CacheView, KvBlocks, KvBlocksMut},
    kv_dtype::{ByKvDtype, KvDtype, with_kv_dtype},
    micro_batches::MicroBatches,
    sequence::PagedSequence,
    shared_cache::SharedCache,
    store::store,
};
use crate::kernels::Isa;

/// The keys and values of a layer.
pub struct PagedCache {
    heads: Heads,
    stored: ByKvDtype,
}

impl PagedCache {
    /// A cache of zeros; `None` if the memory cannot be reserved. Pages become resident with their first use.
    pub fn new(heads: Heads, blocks: usize, kv_dtype: KvDtype) -> Option<Self> {
        Some(Self { heads, stored: kv_dtype.zeroed(heads, blocks)? })
    }

    /// Stores `keys` and `values`, `[rows, num_kv_heads * head_dim]`, of the rows of these sequences.
    pub fn store(&mut self, sequences: &[PagedSequence<'_>], keys: &[f32], values: &[f32], isa: Isa) {
        with_kv_dtype!(&mut self.stored, stored => store(self.heads, stored, sequences, [keys, values], isa));
    }

    /// The cache as attention of these sequences reads it.
    pub fn view<'a>(&'a self, sequences: &'a [PagedSequence<'a>]) -> CacheView<'a> {
        let blocks = match &self.stored {
            ByKvDtype::F32(stored) => ByKvDtype::F32(KvBlocks::new(self.heads, stored)),
            ByKvDtype::F16(stored) => ByKvDtype::F16(KvBlocks::new(self.heads, stored)),
            ByKvDtype::Bf16(stored) => ByKvDtype::Bf16(KvBlocks::new(self.heads, stored)),
            ByKvDtype::Int8(stored) => ByKvDtype::Int8(KvBlocks::new(self.heads, stored)),
        };
        CacheView::new(self.heads, sequences, blocks)
    }

    /// The cache for threads that store the rows of micro-batches and attend to them.
    pub fn shared<'a>(&'a mut self, micro_batches: &'a MicroBatches<'a>) -> SharedCache<'a> {
        let heads = self.heads;
        let blocks = match &mut self.stored {
            ByKvDtype::F32(stored) => ByKvDtype::F32(KvBlocksMut::new(heads, stored)),
            ByKvDtype::F16(stored) => ByKvDtype::F16(KvBlocksMut::new(heads, stored)),
            ByKvDtype::Bf16(stored) => ByKvDtype::Bf16(KvBlocksMut::new(heads, stored)),
            ByKvDtype::Int8(stored) => ByKvDtype::Int8(KvBlocksMut::new(heads, stored)),
        };
        SharedCache::new(heads, micro_batches, blocks)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::kernels::{
        attention::{attend::attend, scoring::AttentionScoring},
        noise,
    };

    const SCORING: AttentionScoring<'static> =
        AttentionScoring { scale: 0.3, softcap: None, window: None, sinks: None, alibi: None };

    #[test]
    fn micro_batches_give_the_bits_of_the_whole_batch() {
        let types = [KvDtype::F16, KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Int8];
        for (head_dim, kv_dtype) in [6, 16, 80, 6, 64].into_iter().zip(types) {
            let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim };
            let cache = || {
                let mut cache = PagedCache::new(heads, 6, kv_dtype).unwrap();
                let head = [PagedSequence { rows: 16, context_len: 16, blocks: &[4] }];
                let [keys, values] = [1, 2].map(|seed| noise(16 * 2 * head_dim, seed, 1.0));
                cache.store(&head, &keys, &values, Isa::detect());
                cache
            };
            // All share the first block, and the last two are one sequence.
            let sequences: [(usize, usize, &[u32]); 4] =
                [(3, 19, &[4, 0]), (1, 17, &[4, 5]), (16, 32, &[4, 2]), (4, 36, &[4, 2, 3])];
            let sequences = sequences.map(|(rows, context_len, blocks)| PagedSequence { rows, context_len, blocks });
            let [keys, values] = [3, 4].map(|seed| noise(24 * 2 * head_dim, seed, 1.0));
            let queries = noise(24 * 4 * head_dim, 5, 1.0);
            let mut whole = cache();
            whole.store(&sequences, &keys, &values, Isa::detect());
            let together = attend(whole.view(&sequences), &queries, SCORING, Isa::detect());

            let parts = [&sequences[..2], &sequences[2..3], &sequences[3..]].map(<[_]>::to_vec);
            let parts = MicroBatches::new(parts.to_vec()).unwrap();
            let mut cache = cache();
            let shared = &cache.shared(&parts);
            let of = |part: usize, rows: std::ops::Range<usize>| {
                let kv = rows.start * 2 * head_dim..rows.end * 2 * head_dim;
                shared.store(part, &keys[kv.clone()], &values[kv], Isa::detect());
                let queries = &queries[rows.start * 4 * head_dim..rows.end * 4 * head_dim];
                attend(shared.view(part), queries, SCORING, Isa::detect())
            };
            let in_parts = thread::scope(|scope| {
                let first = scope.spawn(|| of(0, 0..4));
                let others = [of(1, 4..20), of(2, 20..24)].concat();
                [first.join().unwrap(), others].concat()
            });
            assert_eq!(in_parts, together);
        }
    }

    #[test]
    #[should_panic = "micro-batch 1 reads what is not stored"]
    fn reading_before_storing_panics() {
        let mut cache =
            PagedCache::new(Heads { num_heads: 1, num_kv_heads: 1, head_dim: 16 }, 2, KvDtype::F16).unwrap();
        let sequence = |context_len| PagedSequence { rows: 16, context_len, blocks: &[0, 1] };
        let parts = MicroBatches::new(vec![vec![sequence(16)], vec![sequence(32)]]).unwrap();
        let shared = cache.shared(&parts);
        shared.store(1, &[0.0; 256], &[0.0; 256], Isa::detect());
        shared.view(1);
    }
}
