//! The keys and values of a layer in blocks of [`BLOCK_TOKENS`] tokens that sequences hold.

#![allow(unsafe_code)]

use std::{collections::HashMap, marker::PhantomData, mem::take};

use half::{bf16, f16};

use super::{
    Isa,
    panels::LANES,
    pieces::for_each_mut,
    stored::{Stored, StoredType, Typed, with_typed},
};

/// Tokens in one block of the cache: the scores of a block's keys are the lanes of a panel.
pub const BLOCK_TOKENS: usize = LANES;
/// Numbers below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 11;

/// The head layout of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a key/value head.
    pub fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// What a head's values take in whole panels.
    pub fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
}

/// The rows that one sequence has in a pass, and where its keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The last tokens of the sequence.
    pub rows: usize,
    /// Tokens there are with those.
    pub context_len: usize,
    /// The cache blocks that hold the keys and values of all tokens, in order.
    pub blocks: &'a [u32],
}

impl Sequence<'_> {
    /// Where the keys and values of each row are.
    fn slots(&self) -> impl Iterator<Item = Slot> {
        let slot =
            |position| Slot { block: self.blocks[position / BLOCK_TOKENS] as usize, token: position % BLOCK_TOKENS };
        (self.context_len - self.rows..self.context_len).map(slot)
    }
}

/// The place of a token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    block: usize,
    /// In the block.
    token: usize,
}

/// The keys and values of a layer.
pub struct PagedCache {
    heads: Heads,
    stored: Typed,
}

impl PagedCache {
    /// A cache of zeros, if there is memory for it. It is resident once used.
    pub fn new(heads: Heads, blocks: usize, stored_type: StoredType) -> Option<Self> {
        Some(Self { heads, stored: stored_type.zeroed(heads, blocks)? })
    }

    /// Stores `keys` and `values`, `[rows, num_kv_heads * head_dim]`, of the rows of these sequences.
    pub fn store(&mut self, sequences: &[Sequence<'_>], keys: &[f32], values: &[f32], isa: Isa) {
        with_typed!(&mut self.stored, stored => store(self.heads, stored, sequences, [keys, values], isa));
    }

    /// What these sequences hold.
    pub fn held<'a>(&'a self, sequences: &'a [Sequence<'a>]) -> Held<'a> {
        let blocks = match &self.stored {
            Typed::F32(stored) => Typed::F32(Blocks::of(self.heads, stored)),
            Typed::F16(stored) => Typed::F16(Blocks::of(self.heads, stored)),
            Typed::Bf16(stored) => Typed::Bf16(Blocks::of(self.heads, stored)),
            Typed::Int8(stored) => Typed::Int8(Blocks::of(self.heads, stored)),
        };
        Held { heads: self.heads, sequences, blocks }
    }

    /// What each group of sequences has of its own.
    pub fn apart<'a>(&'a mut self, groups: &'a Groups<'a>) -> Vec<Apart<'a>> {
        let heads = self.heads;
        let blocks = match &mut self.stored {
            Typed::F32(stored) => Typed::F32(BlocksMut::of(heads, stored)),
            Typed::F16(stored) => Typed::F16(BlocksMut::of(heads, stored)),
            Typed::Bf16(stored) => Typed::Bf16(BlocksMut::of(heads, stored)),
            Typed::Int8(stored) => Typed::Int8(BlocksMut::of(heads, stored)),
        };
        groups.0.iter().map(|sequences| Apart { heads, sequences, blocks }).collect()
    }
}

/// Some sequences with their keys and values.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    pub heads: Heads,
    pub sequences: &'a [Sequence<'a>],
    pub blocks: Typed<Blocks<'a, f32>, Blocks<'a, f16>, Blocks<'a, bf16>, Blocks<'a, i8>>,
}

/// Blocks of which some are read: those of the sequences of a [`Held`].
#[derive(Clone, Copy)]
pub struct Blocks<'a, T> {
    heads: Heads,
    first: *const T,
    count: usize,
    borrowed: PhantomData<&'a [T]>,
}

// SAFETY: it is a slice of which nobody changes what is read.
unsafe impl<T: Sync> Sync for Blocks<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for Blocks<'_, T> {}

impl<'a, T: Stored> Blocks<'a, T> {
    fn of(heads: Heads, stored: &'a [T]) -> Self {
        let count = stored.len() / T::block_len(heads);
        Self { heads, first: stored.as_ptr(), count, borrowed: PhantomData }
    }

    /// The keys of a head in a block, and the values with what the last panel reads after them.
    #[inline]
    pub fn get(&self, block: usize, kv_head: usize) -> (&'a [T], &'a [T]) {
        let Heads { num_kv_heads, head_dim, .. } = self.heads;
        assert!(block < self.count && kv_head < num_kv_heads);
        let (values, keys) = (T::values_len(head_dim), T::keys_len(head_dim));
        let at = (block * num_kv_heads + kv_head) * (values + keys);
        // SAFETY: it is inside what is borrowed, and nobody writes to the blocks that sequences hold here.
        let both = unsafe { std::slice::from_raw_parts(self.first.add(at), values + keys) };
        (&both[values..], &both[..values + (self.heads.padded_dim() - head_dim) * T::STEP_LEN / LANES])
    }
}

/// Blocks that several threads write to, each to others.
struct BlocksMut<'a, T> {
    first: *mut T,
    count: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> Clone for BlocksMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for BlocksMut<'_, T> {}

impl<'a, T: Stored> BlocksMut<'a, T> {
    fn of(heads: Heads, stored: &'a mut [T]) -> Self {
        let count = stored.len() / T::block_len(heads);
        Self { first: stored.as_mut_ptr(), count, borrowed: PhantomData }
    }

    /// As they are read.
    fn read(&self, heads: Heads) -> Blocks<'_, T> {
        Blocks { heads, first: self.first, count: self.count, borrowed: PhantomData }
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

/// Groups of sequences that have nothing to do with each other: what one of them writes no other one reads.
pub struct Groups<'a>(Vec<Vec<Sequence<'a>>>);

impl<'a> Groups<'a> {
    /// `None` if they are no such groups.
    pub fn new(groups: Vec<Vec<Sequence<'a>>>) -> Option<Self> {
        let mut writers = HashMap::new();
        for (group, sequences) in groups.iter().enumerate() {
            for Slot { block, .. } in sequences.iter().flat_map(Sequence::slots) {
                if *writers.entry(block as u32).or_insert(group) != group {
                    return None;
                }
            }
        }
        for (group, sequences) in groups.iter().enumerate() {
            let read = |one: &Sequence<'a>| &one.blocks[..one.context_len.div_ceil(BLOCK_TOKENS)];
            if sequences.iter().flat_map(read).any(|block| writers.get(block).is_some_and(|writer| *writer != group)) {
                return None;
            }
        }
        Some(Self(groups))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What a group of sequences has in a cache, while other threads have what the other groups have.
pub struct Apart<'a> {
    heads: Heads,
    sequences: &'a [Sequence<'a>],
    blocks: Typed<BlocksMut<'a, f32>, BlocksMut<'a, f16>, BlocksMut<'a, bf16>, BlocksMut<'a, i8>>,
}

// SAFETY: `Groups` made sure that no other thread writes to the blocks of its sequences, nor reads those that are written.
unsafe impl Send for Apart<'_> {}
// SAFETY: without `&mut` it reads only.
unsafe impl Sync for Apart<'_> {}

impl Apart<'_> {
    /// As [`PagedCache::store`], of its own sequences.
    pub fn store(&mut self, keys: &[f32], values: &[f32], isa: Isa) {
        let (heads, width) = (self.heads, self.heads.num_kv_heads * self.heads.head_dim);
        let slots = || self.sequences.iter().flat_map(Sequence::slots);
        with_typed!(self.blocks, blocks => {
            // SAFETY: its own sequences write to them, so no other group has them, and this one has but one at a time.
            let block = |index: usize| unsafe { blocks.get(heads, index) };
            slots().for_each(|slot| prefetch_row(heads, block(slot.block), slot.token));
            for (slot, (keys, values)) in slots().zip(keys.chunks(width).zip(values.chunks(width))) {
                store_row(heads, block(slot.block), slot.token, [keys, values], isa);
            }
        });
    }

    /// What its sequences hold.
    pub fn held(&self) -> Held<'_> {
        let heads = self.heads;
        let blocks = match &self.blocks {
            Typed::F32(blocks) => Typed::F32(blocks.read(heads)),
            Typed::F16(blocks) => Typed::F16(blocks.read(heads)),
            Typed::Bf16(blocks) => Typed::Bf16(blocks.read(heads)),
            Typed::Int8(blocks) => Typed::Int8(blocks.read(heads)),
        };
        Held { heads, sequences: self.sequences, blocks }
    }
}

fn store<T: Stored>(
    heads: Heads,
    mut stored: &mut [T],
    sequences: &[Sequence<'_>],
    [keys, values]: [&[f32]; 2],
    isa: Isa,
) {
    let (width, block_len) = (heads.num_kv_heads * heads.head_dim, T::block_len(heads));
    let slots = sequences.iter().flat_map(Sequence::slots);
    let mut rows: Vec<(Slot, usize)> = slots.zip(0..keys.len() / width).collect();
    rows.sort_unstable();
    let (mut blocks, mut next) = (Vec::new(), 0);
    for rows in rows.chunk_by(|(slot, _), (other, _)| slot.block == other.block) {
        let (Slot { block, .. }, row) = rows[0];
        let (own, after) = take(&mut stored)[(block - next) * block_len..].split_at_mut(block_len);
        (stored, next) = (after, block + 1);
        blocks.push((row, own, rows));
    }
    // In the order of the rows: a sequence is attended to by the thread that has its rows, and so finds them near.
    blocks.sort_unstable_by_key(|(row, ..)| *row);
    let store = |(_, block, rows): &mut (usize, &mut [T], &[(Slot, usize)])| {
        prefetch_row(heads, block, rows[0].0.token);
        for (Slot { token, .. }, row) in *rows {
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
fn prefetch_row<T: Stored>(Heads { head_dim, .. }: Heads, block: &[T], token: usize) {
    for of_head in block.chunks_exact(T::values_len(head_dim) + T::keys_len(head_dim)) {
        let (values, keys) = of_head.split_at(T::values_len(head_dim));
        T::prefetch([keys, values], token, head_dim);
    }
}

/// Stores what one token has for each head.
fn store_row<T: Stored>(heads: Heads, block: &mut [T], token: usize, [keys, values]: [&[f32]; 2], isa: Isa) {
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
        attention::{Scoring, attend},
        noise,
    };

    const SCORING: Scoring<'static> = Scoring { scale: 0.3, softcap: None, window: None, sinks: None, alibi: None };

    #[test]
    fn groups_apart_find_what_they_would_find_together() {
        let types = [StoredType::F16, StoredType::F32, StoredType::Bf16, StoredType::Int8, StoredType::Int8];
        for (head_dim, stored_type) in [6, 16, 80, 6, 64].into_iter().zip(types) {
            let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim };
            let cache = || {
                let mut cache = PagedCache::new(heads, 6, stored_type).unwrap();
                let head = [Sequence { rows: 16, context_len: 16, blocks: &[4] }];
                let [keys, values] = [1, 2].map(|seed| noise(16 * 2 * head_dim, seed, 1.0));
                cache.store(&head, &keys, &values, Isa::detect());
                cache
            };
            // All have the same head.
            let sequences: [(usize, &[u32]); 3] = [(3, &[4, 0]), (1, &[4, 5]), (4, &[4, 2])];
            let sequences = sequences.map(|(rows, blocks)| Sequence { rows, context_len: 16 + rows, blocks });
            let [keys, values] = [3, 4].map(|seed| noise(8 * 2 * head_dim, seed, 1.0));
            let queries = noise(8 * 4 * head_dim, 5, 1.0);
            let mut whole = cache();
            whole.store(&sequences, &keys, &values, Isa::detect());
            let together = attend(whole.held(&sequences), &queries, SCORING, Isa::detect());

            let groups = Groups::new(vec![sequences[..2].to_vec(), sequences[2..].to_vec()]).unwrap();
            let mut shared = cache();
            let of = |own: &mut Apart<'_>, rows: std::ops::Range<usize>| {
                let kv = rows.start * 2 * head_dim..rows.end * 2 * head_dim;
                own.store(&keys[kv.clone()], &values[kv], Isa::detect());
                let queries = &queries[rows.start * 4 * head_dim..rows.end * 4 * head_dim];
                attend(own.held(), queries, SCORING, Isa::detect())
            };
            let mut own = shared.apart(&groups);
            let [first, second] = &mut own[..] else { panic!("two groups") };
            let apart = thread::scope(|scope| {
                let first = scope.spawn(|| of(first, 0..4));
                let second = of(second, 4..8);
                [first.join().unwrap(), second].concat()
            });
            assert_eq!(apart, together);
        }
    }

    #[test]
    fn groups_that_share_more_than_they_read_are_none() {
        let sequence = |rows, context_len, blocks| Sequence { rows, context_len, blocks };
        let are_apart = |one, other| Groups::new(vec![vec![one], vec![other]]).is_some();
        assert!(are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[0, 2])));
        // Blocks that are not needed yet are no matter.
        assert!(are_apart(sequence(1, 16, &[0, 1]), sequence(1, 16, &[2, 1])));
        assert!(!are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[2, 1])));
        assert!(!are_apart(sequence(2, 17, &[0, 1]), sequence(1, 17, &[0, 2])));
        assert!(!are_apart(sequence(1, 40, &[0, 1, 2]), sequence(1, 20, &[3, 0])));
    }
}
