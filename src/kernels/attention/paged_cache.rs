//! The keys and values of a layer in blocks of [`BLOCK_TOKENS`] tokens that sequences hold.

#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    marker::PhantomData,
    mem::take,
    sync::atomic::{AtomicU8, Ordering},
};

use half::{bf16, f16};

use super::{
    heads::{BLOCK_TOKENS, Heads},
    kv_dtype::{ByKvDtype, KvDtype, KvElement, with_kv_dtype},
};
use crate::kernels::{Isa, layout::panels::LANES, memory::prefetch::Prefetcher, threads::parallel::for_each_mut};

/// Numbers below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 11;

/// The rows that one sequence has in a pass, and where its keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct PagedSequence<'a> {
    /// The last tokens of the sequence.
    pub rows: usize,
    /// Tokens there are with those.
    pub context_len: usize,
    /// The cache blocks that hold the keys and values of all tokens, in order.
    pub blocks: &'a [u32],
}

impl<'a> PagedSequence<'a> {
    /// The blocks that are read for its rows.
    pub fn read(&self) -> &'a [u32] {
        &self.blocks[..self.context_len.div_ceil(BLOCK_TOKENS)]
    }

    /// Those of them that its rows are stored in.
    fn written(&self) -> &'a [u32] {
        assert!(self.rows <= self.context_len);
        &self.read()[(self.context_len - self.rows) / BLOCK_TOKENS..]
    }

    /// Where the keys and values of each row are.
    fn slots(&self) -> impl Iterator<Item = TokenSlot> {
        let slot = |position| TokenSlot {
            block: self.blocks[position / BLOCK_TOKENS] as usize,
            token: position % BLOCK_TOKENS,
        };
        (self.context_len - self.rows..self.context_len).map(slot)
    }
}

/// The place of a token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct TokenSlot {
    block: usize,
    /// In the block.
    token: usize,
}

/// The keys and values of a layer.
pub struct PagedCache {
    heads: Heads,
    stored: ByKvDtype,
}

impl PagedCache {
    /// A cache of zeros, if there is memory for it. It is resident once used.
    pub fn new(heads: Heads, blocks: usize, kv_dtype: KvDtype) -> Option<Self> {
        Some(Self { heads, stored: kv_dtype.zeroed(heads, blocks)? })
    }

    /// Stores `keys` and `values`, `[rows, num_kv_heads * head_dim]`, of the rows of these sequences.
    pub fn store(&mut self, sequences: &[PagedSequence<'_>], keys: &[f32], values: &[f32], isa: Isa) {
        with_kv_dtype!(&mut self.stored, stored => store(self.heads, stored, sequences, [keys, values], isa));
    }

    /// What these sequences hold.
    pub fn view<'a>(&'a self, sequences: &'a [PagedSequence<'a>]) -> CacheView<'a> {
        let blocks = match &self.stored {
            ByKvDtype::F32(stored) => ByKvDtype::F32(KvBlocks::of(self.heads, stored)),
            ByKvDtype::F16(stored) => ByKvDtype::F16(KvBlocks::of(self.heads, stored)),
            ByKvDtype::Bf16(stored) => ByKvDtype::Bf16(KvBlocks::of(self.heads, stored)),
            ByKvDtype::Int8(stored) => ByKvDtype::Int8(KvBlocks::of(self.heads, stored)),
        };
        CacheView { heads: self.heads, sequences, blocks }
    }

    /// For threads that store these parts and read what is stored.
    pub fn shared<'a>(&'a mut self, parts: &'a MicroBatches<'a>) -> SharedCache<'a> {
        let heads = self.heads;
        let blocks = match &mut self.stored {
            ByKvDtype::F32(stored) => ByKvDtype::F32(KvBlocksMut::of(heads, stored)),
            ByKvDtype::F16(stored) => ByKvDtype::F16(KvBlocksMut::of(heads, stored)),
            ByKvDtype::Bf16(stored) => ByKvDtype::Bf16(KvBlocksMut::of(heads, stored)),
            ByKvDtype::Int8(stored) => ByKvDtype::Int8(KvBlocksMut::of(heads, stored)),
        };
        SharedCache { heads, parts, blocks, states: parts.0.iter().map(|_| AtomicU8::default()).collect() }
    }
}

/// Some sequences with their keys and values.
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    heads: Heads,
    sequences: &'a [PagedSequence<'a>],
    blocks: AnyKvBlocks<'a>,
}

pub type AnyKvBlocks<'a> = ByKvDtype<KvBlocks<'a, f32>, KvBlocks<'a, f16>, KvBlocks<'a, bf16>, KvBlocks<'a, i8>>;

impl<'a> CacheView<'a> {
    /// The heads, the sequences, and where they are held.
    pub fn into_parts(self) -> (Heads, &'a [PagedSequence<'a>], AnyKvBlocks<'a>) {
        (self.heads, self.sequences, self.blocks)
    }
}

/// KvBlocks of which some are read: those that the sequences of a [`CacheView`] read.
#[derive(Clone, Copy)]
pub struct KvBlocks<'a, T> {
    heads: Heads,
    first: *const T,
    count: usize,
    borrowed: PhantomData<&'a [T]>,
}

// SAFETY: it is a slice of which nobody changes what is read.
unsafe impl<T: Sync> Sync for KvBlocks<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for KvBlocks<'_, T> {}

impl<'a, T: KvElement> KvBlocks<'a, T> {
    fn of(heads: Heads, stored: &'a [T]) -> Self {
        let count = stored.len() / T::block_len(heads);
        Self { heads, first: stored.as_ptr(), count, borrowed: PhantomData }
    }

    /// The keys of a head in a block, and the values with what the last panel reads after them.
    ///
    /// # Safety
    /// A sequence of the [`CacheView`] reads the block: others may be written meanwhile.
    #[inline]
    pub unsafe fn get(&self, block: usize, kv_head: usize) -> (&'a [T], &'a [T]) {
        let Heads { num_kv_heads, head_dim, .. } = self.heads;
        assert!(block < self.count && kv_head < num_kv_heads);
        let (values, keys) = (T::values_len(head_dim), T::keys_len(head_dim));
        let at = (block * num_kv_heads + kv_head) * (values + keys);
        // SAFETY: it is inside what is borrowed, and nobody writes to the blocks that sequences read here.
        let both = unsafe { std::slice::from_raw_parts(self.first.add(at), values + keys) };
        (&both[values..], &both[..values + (self.heads.padded_dim() - head_dim) * T::STEP_LEN / LANES])
    }

    /// What a head has in these blocks, to be asked for while so much `work` is done.
    pub fn ahead<'b>(&self, blocks: &'b [u32], kv_head: usize, work: usize) -> Prefetcher<'b> {
        let Heads { num_kv_heads, head_dim, .. } = self.heads;
        let len = T::values_len(head_dim) + T::keys_len(head_dim);
        let first = self.first.wrapping_add(kv_head * len);
        let bytes = len * size_of::<T>();
        Prefetcher::new(blocks, first.cast(), bytes * num_kv_heads, bytes, work)
    }
}

/// KvBlocks that several threads write to, each to others.
struct KvBlocksMut<'a, T> {
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
    fn of(heads: Heads, stored: &'a mut [T]) -> Self {
        let count = stored.len() / T::block_len(heads);
        Self { first: stored.as_mut_ptr(), count, borrowed: PhantomData }
    }

    /// As they are read.
    fn read(&self, heads: Heads) -> KvBlocks<'_, T> {
        KvBlocks { heads, first: self.first, count: self.count, borrowed: PhantomData }
    }

    /// # Safety
    /// Nobody else has this block meanwhile.
    unsafe fn get(&self, heads: Heads, block: usize) -> &'a mut [T] {
        assert!(block < self.count);
        let len = T::block_len(heads);
        // SAFETY: it is inside what is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(block * len), len) }
    }
}

/// MicroBatches of a batch in an order: what one of them writes only it and later ones read, and no other one writes.
pub struct MicroBatches<'a>(Vec<MicroBatch<'a>>);

struct MicroBatch<'a> {
    sequences: Vec<PagedSequence<'a>>,
    /// The first of the parts that write what it reads.
    reads_from: usize,
}

impl<'a> MicroBatches<'a> {
    /// `None` if they are no such parts.
    pub fn new(parts: Vec<Vec<PagedSequence<'a>>>) -> Option<Self> {
        let mut writers = HashMap::new();
        for (part, sequences) in parts.iter().enumerate() {
            for block in sequences.iter().flat_map(PagedSequence::written) {
                if *writers.entry(*block).or_insert(part) != part {
                    return None;
                }
            }
        }
        let part = |(index, sequences): (usize, Vec<PagedSequence<'a>>)| {
            let read_from =
                sequences.iter().flat_map(PagedSequence::read).filter_map(|block| writers.get(block)).copied();
            let (first, last) =
                read_from.fold((index, index), |(first, last), writer| (first.min(writer), last.max(writer)));
            (last == index).then_some(MicroBatch { sequences, reads_from: first })
        };
        parts.into_iter().enumerate().map(part).collect::<Option<_>>().map(Self)
    }

    /// Whether none of them reads what another one writes.
    pub fn are_apart(&self) -> bool {
        self.0.iter().enumerate().all(|(index, part)| part.reads_from == index)
    }
}

/// The keys and values of a layer while threads store those of [`MicroBatches`] and read what is stored.
pub struct SharedCache<'a> {
    heads: Heads,
    parts: &'a MicroBatches<'a>,
    blocks: ByKvDtype<KvBlocksMut<'a, f32>, KvBlocksMut<'a, f16>, KvBlocksMut<'a, bf16>, KvBlocksMut<'a, i8>>,
    /// What became of each part.
    states: Vec<AtomicU8>,
}

/// States of a part: first it is neither of them.
const BEING_STORED: u8 = 1;
const STORED: u8 = 2;

// SAFETY: a block is written for one part, by the one thread that has found it not stored, and read by threads that have found
// all parts stored which write to it.
unsafe impl Sync for SharedCache<'_> {}
// SAFETY: as above.
unsafe impl Send for SharedCache<'_> {}

impl SharedCache<'_> {
    /// As [`PagedCache::store`], of a part; once.
    pub fn store(&self, part: usize, keys: &[f32], values: &[f32], isa: Isa) {
        assert_eq!(self.states[part].swap(BEING_STORED, Ordering::Relaxed), 0, "part {part} was stored before");
        let (heads, width) = (self.heads, self.heads.num_kv_heads * self.heads.head_dim);
        let sequences = &self.parts.0[part].sequences;
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        assert_eq!([keys.len(), values.len()], [rows * width; 2]);
        let slots = || sequences.iter().flat_map(PagedSequence::slots);
        with_kv_dtype!(self.blocks, blocks => {
            // SAFETY: this part alone writes to them, nobody reads them before it is stored, and here is but one at a time.
            let block = |index: usize| unsafe { blocks.get(heads, index) };
            slots().for_each(|slot| prefetch_row(heads, block(slot.block), slot.token));
            for (slot, (keys, values)) in slots().zip(keys.chunks(width).zip(values.chunks(width))) {
                store_row(heads, block(slot.block), slot.token, [keys, values], isa);
            }
        });
        self.states[part].store(STORED, Ordering::Release);
    }

    /// What the sequences of a part hold. It panics unless that part and those before it that it reads are stored.
    pub fn view(&self, part: usize) -> CacheView<'_> {
        let (heads, MicroBatch { sequences, reads_from }) = (self.heads, &self.parts.0[part]);
        let are_stored = self.states[*reads_from..=part].iter().all(|state| state.load(Ordering::Acquire) == STORED);
        assert!(are_stored, "part {part} reads what is not stored");
        let blocks = match &self.blocks {
            ByKvDtype::F32(blocks) => ByKvDtype::F32(blocks.read(heads)),
            ByKvDtype::F16(blocks) => ByKvDtype::F16(blocks.read(heads)),
            ByKvDtype::Bf16(blocks) => ByKvDtype::Bf16(blocks.read(heads)),
            ByKvDtype::Int8(blocks) => ByKvDtype::Int8(blocks.read(heads)),
        };
        CacheView { heads, sequences, blocks }
    }
}

fn store<T: KvElement>(
    heads: Heads,
    mut stored: &mut [T],
    sequences: &[PagedSequence<'_>],
    [keys, values]: [&[f32]; 2],
    isa: Isa,
) {
    let (width, block_len) = (heads.num_kv_heads * heads.head_dim, T::block_len(heads));
    let slots = sequences.iter().flat_map(PagedSequence::slots);
    let mut rows: Vec<(TokenSlot, usize)> = slots.zip(0..keys.len() / width).collect();
    rows.sort_unstable();
    let (mut blocks, mut next) = (Vec::new(), 0);
    for rows in rows.chunk_by(|(slot, _), (other, _)| slot.block == other.block) {
        let (TokenSlot { block, .. }, row) = rows[0];
        let (own, after) = take(&mut stored)[(block - next) * block_len..].split_at_mut(block_len);
        (stored, next) = (after, block + 1);
        blocks.push((row, own, rows));
    }
    // In the order of the rows: a sequence is attended to by the thread that has its rows, and so finds them near.
    blocks.sort_unstable_by_key(|(row, ..)| *row);
    let store = |(_, block, rows): &mut (usize, &mut [T], &[(TokenSlot, usize)])| {
        prefetch_row(heads, block, rows[0].0.token);
        for (TokenSlot { token, .. }, row) in *rows {
            let of_row = row * width..(row + 1) * width;
            store_row(heads, block, *token, [&keys[of_row.clone()], &values[of_row]], isa);
        }
    };
    match keys.len() < PARALLEL_LEN {
        true => blocks.iter_mut().for_each(store),
        false => for_each_mut(&mut blocks, |_, block| store(block)),
    }
}

/// Asks for the lines that `store_row` writes to.
fn prefetch_row<T: KvElement>(Heads { head_dim, .. }: Heads, block: &[T], token: usize) {
    for of_head in block.chunks_exact(T::values_len(head_dim) + T::keys_len(head_dim)) {
        let (values, keys) = of_head.split_at(T::values_len(head_dim));
        T::prefetch([keys, values], token, head_dim);
    }
}

/// Stores what one token has for each head.
fn store_row<T: KvElement>(heads: Heads, block: &mut [T], token: usize, [keys, values]: [&[f32]; 2], isa: Isa) {
    let head_dim = heads.head_dim;
    let block = block.chunks_exact_mut(T::values_len(head_dim) + T::keys_len(head_dim));
    for ((of_head, key), value) in block.zip(keys.chunks_exact(head_dim)).zip(values.chunks_exact(head_dim)) {
        let (values, keys) = of_head.split_at_mut(T::values_len(head_dim));
        T::store([keys, values], token, [key, value], isa);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::kernels::{
        attention::{attend::attend, scoring::Scoring},
        noise,
    };

    const SCORING: Scoring<'static> = Scoring { scale: 0.3, softcap: None, window: None, sinks: None, alibi: None };

    #[test]
    fn parts_find_what_they_would_find_together() {
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
            // All have the same head, and the last two are one sequence.
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
    fn parts_write_blocks_of_their_own_and_read_none_of_later_ones() {
        let sequence = |rows, context_len, blocks| PagedSequence { rows, context_len, blocks };
        let are_apart = |one, other| MicroBatches::new(vec![vec![one], vec![other]]).map(|parts| parts.are_apart());
        assert_eq!(are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[0, 2])), Some(true));
        // KvBlocks that are not needed yet are no matter.
        assert_eq!(are_apart(sequence(1, 16, &[0, 1]), sequence(1, 16, &[2, 1])), Some(true));
        assert_eq!(are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[2, 1])), None);
        assert_eq!(are_apart(sequence(2, 17, &[0, 1]), sequence(1, 17, &[0, 2])), Some(false));
        assert_eq!(are_apart(sequence(1, 17, &[0, 2]), sequence(2, 17, &[0, 1])), None);
        assert_eq!(are_apart(sequence(1, 40, &[0, 1, 2]), sequence(1, 20, &[3, 0])), None);
        assert_eq!(are_apart(sequence(1, 20, &[3, 0]), sequence(1, 40, &[0, 1, 2])), Some(false));
        assert_eq!(are_apart(sequence(16, 32, &[0, 1]), sequence(8, 40, &[0, 1, 2])), Some(false));
        assert_eq!(are_apart(sequence(16, 28, &[0, 1]), sequence(8, 36, &[0, 1, 2])), None);
    }

    #[test]
    #[should_panic = "part 1 reads what is not stored"]
    fn what_is_not_stored_is_not_read() {
        let mut cache =
            PagedCache::new(Heads { num_heads: 1, num_kv_heads: 1, head_dim: 16 }, 2, KvDtype::F16).unwrap();
        let sequence = |context_len| PagedSequence { rows: 16, context_len, blocks: &[0, 1] };
        let parts = MicroBatches::new(vec![vec![sequence(16)], vec![sequence(32)]]).unwrap();
        let shared = cache.shared(&parts);
        shared.store(1, &[0.0; 256], &[0.0; 256], Isa::detect());
        shared.view(1);
    }
}
